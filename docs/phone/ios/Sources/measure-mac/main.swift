// On a Mac, to try it out: swift run measure-mac FOLDER-OF-THE-BUNDLE RESULT.json
import Foundation
import Measure

let given = CommandLine.arguments
guard given.count == 3 else {
    FileHandle.standardError.write(Data("wanted FOLDER RESULT.json\n".utf8))
    exit(2)
}
do {
    let bundle = try MeasuredBundle(folder: URL(fileURLWithPath: given[1], isDirectory: true))
    let content = try Measurement(bundle: bundle, mode: .quick) { print($0) }.document()
    try content.write(to: URL(fileURLWithPath: given[2]), options: .atomic)
} catch {
    FileHandle.standardError.write(Data("error: \(error)\n".utf8))
    exit(1)
}
