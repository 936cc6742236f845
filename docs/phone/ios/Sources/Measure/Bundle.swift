import CryptoKit
import Foundation

/// Why a bundle or a file is not measured.
public struct MeasureError: Error, CustomStringConvertible {
    public let description: String
}

struct Manifest: Decodable {
    struct Golden: Decodable {
        let entry: String
        let count: Int
    }

    struct File: Decodable {
        let name: String
        let target: String
        let path: String
        let entries: [String]
        let sha256: String
        let mean: [Float]
        let std: [Float]
        let golden: Golden?
    }

    struct Slice: Decodable {
        let count: Int
        let shape: [Int]
        let labels: String
    }

    let files: [File]
    let slice: Slice
    let entries: [String: String]
}

/// An unpacked bundle: each entry is held against its digest before it is used.
public struct MeasuredBundle {
    let folder: URL
    let sha256: String
    let manifest: Manifest
    let images: Data
    let labels: [Int]

    /// `folder`: what `python3 -m zipfile -e bundle.pyz` wrote, and beside it `bundle.sha256`.
    public init(folder: URL) throws {
        self.folder = folder
        let beside = folder.deletingLastPathComponent().appendingPathComponent("bundle.sha256")
        sha256 = try String(contentsOf: beside, encoding: .utf8).trimmingCharacters(in: .whitespacesAndNewlines)
        let content = try Data(contentsOf: folder.appendingPathComponent("manifest.json"))
        manifest = try JSONDecoder().decode(Manifest.self, from: content)
        images = try MeasuredBundle.entry("slice/images.u8", in: folder, of: manifest)
        let digits = Array(manifest.slice.labels)
        labels = stride(from: 0, to: digits.count, by: 4).map { Int(String(digits[$0..<$0 + 4]), radix: 16)! }
    }

    func entry(_ name: String) throws -> Data { try MeasuredBundle.entry(name, in: folder, of: manifest) }

    /// The golden images of a file, one uint8 [C, H, W] after the other.
    func goldenImages(_ golden: Manifest.Golden) throws -> Data {
        let content = try entry(golden.entry)
        let size = content.prefix(8).enumerated().reduce(0) { $0 | Int($1.element) << (8 * $1.offset) }
        let head = try JSONSerialization.jsonObject(with: content.subdata(in: 8..<8 + size)) as? [String: Any]
        guard let place = (head?["images"] as? [String: Any])?["data_offsets"] as? [Int] else {
            throw MeasureError(description: "\(golden.entry) holds no images: unpack the bundle again")
        }
        return content.subdata(in: 8 + size + place[0]..<8 + size + place[1])
    }

    private static func entry(_ name: String, in folder: URL, of manifest: Manifest) throws -> Data {
        let content = try Data(contentsOf: folder.appendingPathComponent(name))
        let found = SHA256.hash(data: content).map { String(format: "%02x", $0) }.joined()
        guard found == manifest.entries[name] else {
            throw MeasureError(description: "\(name) differs from what was written: unpack the bundle again")
        }
        return content
    }
}
