import Foundation

/// Least calls and seconds of each file: as the bundle's own runner has them.
public enum Mode: String {
    case quick, normal
    var calls: Int { self == .quick ? 128 : 1024 }
    var seconds: Double { self == .quick ? 10 : 60 }
    var blocks: Int { 30 }
}

private let mostKept = 200
private let referenceEvery = 20_000_000.0

/// The same steps as the bundle's runner, and the same document; `say` tells where it is.
public final class Measurement {
    private final class Looked {
        var row: [String: Any]
        let net: Net
        let call: () throws -> Void
        var calls = 0
        var busy: UInt64 = 0
        var kept: [[UInt64]] = []

        init(row: [String: Any], net: Net, call: @escaping () throws -> Void) {
            (self.row, self.net, self.call) = (row, net, call)
        }
    }

    private let bundle: MeasuredBundle
    private let mode: Mode
    private let say: (String) -> Void
    private var sink: UInt32 = 0

    public init(bundle: MeasuredBundle, mode: Mode, say: @escaping (String) -> Void) {
        (self.bundle, self.mode, self.say) = (bundle, mode, say)
    }

    public func document() throws -> Data {
        var rows: [[String: Any]] = []
        var looked: [Looked] = []
        for file in bundle.manifest.files {
            say("looking at \(file.name)")
            var row: [String: Any] = [
                "target": file.target, "file": file.name, "error": NSNull(), "missing": false, "latency": NSNull(),
            ]
            if file.target != "coreml" {
                row["error"] = "this app has no runtime for \(file.target)"
                row["missing"] = true
            } else {
                do { looked.append(try look(file, row)) } catch { row["error"] = "its runtime refused it: \(error)" }
            }
            rows.append(row)
        }
        var groups: [[String: Any]] = []
        if !looked.isEmpty {
            say("timing")
            groups.append(["target": "coreml", "blocks": try time(looked)])
        }
        for done in looked {
            done.row["latency"] = [
                "times_ns": done.kept, "calls": done.calls, "busy_ns": done.busy, "per_timing": 1,
            ] as [String: Any]
            rows = rows.map { $0["file"] as? String == done.row["file"] as? String ? done.row : $0 }
        }
        let found: [String: Any] = [
            "schema": 1, "kind": "device", "bundle_sha256": bundle.sha256, "runner": "ios 1", "finished": true,
            "mode": modeFields(),
            "device": device(), "governor": NSNull(), "threads": 1, "pinned": [Int](), "groups": groups, "rows": rows,
        ]
        return try JSONSerialization.data(withJSONObject: found)
    }

    private func look(_ file: Manifest.File, _ row: [String: Any]) throws -> Looked {
        let started = now()
        for entry in file.entries { _ = try bundle.entry(entry) }
        let shape = bundle.manifest.slice.shape
        let package = bundle.folder.appendingPathComponent(file.path)
        let loading = now()
        let net = try Net(package: package, shape: shape, file: file)
        let first = milliseconds(loading)
        let image = try net.feed(bundle.images, 0)
        let calling = now()
        _ = try net.run(image)
        let firstCall = milliseconds(calling)
        var golden: String?
        if let held = file.golden {
            let images = try bundle.goldenImages(held)
            golden = base64(try answers(net, images, held.count))
        }
        let classes = try answers(net, bundle.images, bundle.manifest.slice.count).map { values in
            values.indices.max { values[$0] < values[$1] }!
        }
        let right = zip(classes, bundle.labels).filter { $0 == $1 }.count
        let again = now()
        _ = try Net(package: package, shape: shape, file: file)
        var found = row
        found["load_ms"] = ["first": first, "again": milliseconds(again)]
        found["first_call_ms"] = firstCall
        found["sha256"] = file.sha256
        found["golden_answers"] = golden ?? NSNull()
        found["answers"] = classes.map { String(format: "%04x", $0) }.joined()
        found["accuracy"] = ["top1": Double(right) / Double(classes.count), "n": classes.count] as [String: Any]
        found["runtime"] = ["name": "coreml", "version": device()["os"]!, "provider": "Core ML"] as [String: Any]
        found["peak_memory_bytes"] = NSNull()
        found["seconds"] = milliseconds(started) / 1000
        return Looked(row: found, net: net) { _ = try net.run(image) }
    }

    private func answers(_ net: Net, _ images: Data, _ count: Int) throws -> [[Float]] {
        try (0..<count).map { try net.run(try net.feed(images, $0)) }
    }

    private func base64(_ answers: [[Float]]) -> String {
        var bytes = Data()
        for value in answers.joined() { withUnsafeBytes(of: value.bitPattern.littleEndian) { bytes.append(contentsOf: $0) } }
        return bytes.base64EncodedString()
    }

    /// Files in turn, in an order drawn anew for each round, with fixed work between, so that a slower clock shows.
    private func time(_ looked: [Looked]) throws -> [[String: Any]] {
        for _ in 0..<3 { for one in looked { try one.call() } }
        let warm = now()
        for one in looked { try one.call() }
        let round = max(1, Double(now() - warm))
        let duration = 1e9 * mode.seconds * Double(looked.count) / Double(mode.blocks)
        let least = (mode.calls + mode.blocks - 1) / mode.blocks
        let stride = max(1, Int((max(duration / round, Double(least)) / Double(mostKept)).rounded(.up)))
        let between = max(1, Int(referenceEvery / round))
        var order = looked
        return try (0..<mode.blocks).map { _ in
            looked.forEach { $0.kept.append([]) }
            return try block(&order, duration, least, stride, between)
        }
    }

    private func block(
        _ order: inout [Looked], _ duration: Double, _ least: Int, _ stride: Int, _ between: Int
    ) throws -> [String: Any] {
        var references: [(wall: UInt64, cpu: UInt64)] = []
        let started = now()
        var rounds = 0
        repeat {
            if rounds % between == 0 { references.append(reference()) }
            order.shuffle()  // what ran before leaves its own in the caches
            for one in order {
                let before = now()
                try one.call()
                let taken = max(1, now() - before)
                one.calls += 1
                one.busy += taken
                if rounds % stride == 0 { one.kept[one.kept.count - 1].append(taken) }
            }
            rounds += 1
        } while Double(now() - started) < duration || rounds < least
        let cpu = references.map { $0.cpu }.sorted()
        return [
            "wall_ms": milliseconds(started),
            // Core ML works on other processors than this thread's, so that its share of one tells nothing.
            "cpu_ms": NSNull(),
            "reference_wall_ms": Double(references.map { $0.wall }.reduce(0, +)) / 1e6,
            "reference_cpu_ms": Double(cpu.reduce(0, +)) / 1e6, "reference_ms": Double(cpu[cpu.count / 2]) / 1e6,
            "stolen_ticks": NSNull(), "clock_khz": NSNull(), "temperature_c": NSNull(),
        ]
    }

    private func reference() -> (wall: UInt64, cpu: UInt64) {
        let (wall, cpu) = (now(), clock_gettime_nsec_np(CLOCK_THREAD_CPUTIME_ID))
        var value: UInt32 = 1
        for _ in 0..<400_000 { value = (value &* 1_103_515_245 &+ 12345) & 0x7fff_ffff }
        sink = value
        return (now() - wall, clock_gettime_nsec_np(CLOCK_THREAD_CPUTIME_ID) - cpu)
    }

    private func now() -> UInt64 { clock_gettime_nsec_np(CLOCK_UPTIME_RAW) }

    private func milliseconds(_ since: UInt64) -> Double { Double(now() - since) / 1e6 }

    private func modeFields() -> [String: Any] {
        ["name": mode.rawValue, "calls": mode.calls, "seconds": mode.seconds, "blocks": mode.blocks]
    }

    private func device() -> [String: Any] {
        let info = ProcessInfo.processInfo
        let version = info.operatingSystemVersion
        #if os(iOS)
        let system = "iOS"
        #else
        let system = "macOS"
        #endif
        #if targetEnvironment(simulator)
        let emulated: Any = "simulator"
        #else
        let emulated: Any = NSNull()
        #endif
        let cores = (0..<info.activeProcessorCount).map { ["id": $0, "max_khz": NSNull(), "part": NSNull()] as [String: Any] }
        return [
            "name": info.hostName, "model": text("hw.machine"), "kernel": text("kern.osrelease"),
            "os": "\(system) \(version.majorVersion).\(version.minorVersion)", "machine": "arm64",
            "cpu": text("machdep.cpu.brand_string"), "cores": cores, "memory_bytes": info.physicalMemory, "emulated": emulated,
        ]
    }

    private func text(_ name: String) -> String {
        var size = 0
        guard sysctlbyname(name, nil, &size, nil, 0) == 0, size > 0 else { return "" }
        var found = [CChar](repeating: 0, count: size)
        return sysctlbyname(name, &found, &size, nil, 0) == 0 ? String(cString: found) : ""
    }
}
