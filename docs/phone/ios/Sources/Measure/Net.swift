import CoreML
import CoreVideo
import Foundation

/// A Core ML file that is loaded: one image of the bundle, uint8 [C, H, W], to its logits.
final class Net {
    private let model: MLModel
    private let input: MLFeatureDescription
    private let shape: [Int]
    private let mean: [Float]
    private let std: [Float]

    /// `shape`: of the images, [C, H, W]; `file`: what the bundle says of it.
    init(package: URL, shape: [Int], file: Manifest.File) throws {
        let compiled = try MLModel.compileModel(at: package)
        defer { try? FileManager.default.removeItem(at: compiled) }
        let options = MLModelConfiguration()
        options.computeUnits = .all
        model = try MLModel(contentsOf: compiled, configuration: options)
        let inputs = model.modelDescription.inputDescriptionsByName.values
        guard let first = inputs.first, first.type == .image || first.type == .multiArray else {
            throw MeasureError(description: "wanted a file that takes an image or an array")
        }
        guard file.mean.count == shape[0], file.std.count == shape[0] else {
            throw MeasureError(description: "its means are not its channels'")
        }
        input = first
        (self.shape, mean, std) = (shape, file.mean, file.std)
    }

    /// The image as the file takes it: made once, so that the time of a call is the network's.
    func feed(_ images: Data, _ index: Int) throws -> MLFeatureProvider {
        try input.type == .image ? picture(images, index) : array(images, index)
    }

    /// Floats [1, C, H, W], (bytes / 255 - mean) / std by channel.
    private func array(_ images: Data, _ index: Int) throws -> MLFeatureProvider {
        let values = try MLMultiArray(shape: [1] + shape.map { NSNumber(value: $0) }, dataType: .float32)
        let place = values.dataPointer.bindMemory(to: Float.self, capacity: values.count)
        let (area, start) = (shape[1] * shape[2], images.startIndex + index * values.count)
        for i in 0..<values.count {
            place[i] = (Float(images[start + i]) / 255 - mean[i / area]) / std[i / area]
        }
        return try MLDictionaryFeatureProvider(dictionary: [input.name: MLFeatureValue(multiArray: values)])
    }

    private func picture(_ images: Data, _ index: Int) throws -> MLFeatureProvider {
        let (channels, height, width) = (shape[0], shape[1], shape[2])
        let kind = channels == 1 ? kCVPixelFormatType_OneComponent8 : kCVPixelFormatType_32BGRA
        var made: CVPixelBuffer?
        CVPixelBufferCreate(nil, width, height, kind, [kCVPixelBufferIOSurfacePropertiesKey: [:]] as CFDictionary, &made)
        guard let buffer = made else { throw MeasureError(description: "no memory for an image") }
        CVPixelBufferLockBaseAddress(buffer, [])
        let base = CVPixelBufferGetBaseAddress(buffer)!.assumingMemoryBound(to: UInt8.self)
        let row = CVPixelBufferGetBytesPerRow(buffer)
        let start = images.startIndex + index * channels * height * width
        for y in 0..<height {
            for x in 0..<width {
                let place = start + y * width + x
                if channels == 1 {
                    base[y * row + x] = images[place]
                } else {
                    for c in 0..<3 { base[y * row + 4 * x + 2 - c] = images[place + c * height * width] }
                    base[y * row + 4 * x + 3] = 255
                }
            }
        }
        CVPixelBufferUnlockBaseAddress(buffer, [])
        return try MLDictionaryFeatureProvider(dictionary: [input.name: MLFeatureValue(pixelBuffer: buffer)])
    }

    func run(_ image: MLFeatureProvider) throws -> [Float] {
        let answer = try model.prediction(from: image)
        for name in answer.featureNames {
            if let values = answer.featureValue(for: name)?.multiArrayValue {
                return (0..<values.count).map { values[$0].floatValue }
            }
        }
        throw MeasureError(description: "the file answers with no numbers: write it without a classifier's labels")
    }
}
