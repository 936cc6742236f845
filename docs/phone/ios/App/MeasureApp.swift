import Measure
import SwiftUI

/// Measures the bundle among the app's resources and keeps the result where the Files app shows it.
@main
struct MeasureApp: App {
    @State private var lines = ["Keep the phone awake and on its charger."]
    @State private var running = false

    var body: some Scene {
        WindowGroup {
            VStack(alignment: .leading, spacing: 12) {
                HStack {
                    Button("Quick") { start(.quick) }
                    Button("Normal") { start(.normal) }
                }
                .disabled(running)
                ScrollView { Text(lines.joined(separator: "\n")).frame(maxWidth: .infinity, alignment: .leading) }
            }
            .padding()
        }
    }

    private func start(_ mode: Mode) {
        running = true
        UIApplication.shared.isIdleTimerDisabled = true
        DispatchQueue.global(qos: .userInitiated).async {
            do {
                let folder = Bundle.main.resourceURL!.appendingPathComponent("bundle", isDirectory: true)
                let content = try Measurement(bundle: try MeasuredBundle(folder: folder), mode: mode, say: say).document()
                let place = try FileManager.default.url(
                    for: .documentDirectory, in: .userDomainMask, appropriateFor: nil, create: true
                ).appendingPathComponent("result.json")
                try content.write(to: place, options: .atomic)
                say("result: \(place.lastPathComponent), in Files")
            } catch {
                say("error: \(error)")
            }
            DispatchQueue.main.async { running = false }
        }
    }

    private func say(_ line: String) { DispatchQueue.main.async { lines.append(line) } }
}
