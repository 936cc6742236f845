// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "Measure",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "Measure", targets: ["Measure"])],
    targets: [
        .target(name: "Measure"),
        .executableTarget(name: "measure-mac", dependencies: ["Measure"]),
    ]
)
