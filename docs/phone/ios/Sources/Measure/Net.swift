import CoreML
import CoreVideo
import Foundation

/// A Core ML file that is loaded: one image of the bundle, uint8 [C, H, W], to its logits.
final class Net {
    private let model: MLModel
    private let input: MLFeatureDescription
    private let shape: [Int]

    init(package: URL, shape: [Int]) throws {
        let compiled = try MLModel.compileModel(at: package)
        defer { try? FileManager.default.removeItem(at: compiled) }
        let options = MLModelConfiguration()
        options.computeUnits = .all
        model = try MLModel(contentsOf: compiled, configuration: options)
        guard let first = model.modelDescription.inputDescriptionsByName.values.first, first.type == .image else {
            throw MeasureError(description: "wanted a file that takes an image")
        }
        input = first
        self.shape = shape
    }

    /// The image as the file takes it: made once, so that the time of a call is the network's.
    func picture(_ images: Data, _ index: Int) throws -> MLFeatureProvider {
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
