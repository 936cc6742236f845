package edgewise.measure

import android.app.Activity
import android.os.Bundle as State
import android.view.WindowManager
import android.widget.TextView
import java.io.File
import kotlin.concurrent.thread

/** Measures the bundle among the app's assets as it starts: `am start -n edgewise.measure/.MainActivity --es mode normal`. */
class MainActivity : Activity() {
    override fun onCreate(state: State?) {
        super.onCreate(state)
        // A screen that goes dark slows the processor down.
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        val text = TextView(this).apply { setPadding(48, 96, 48, 48) }
        setContentView(text)
        if (state != null) return
        val mode = if (intent.getStringExtra("mode") == "normal") Mode.normal else Mode.quick
        val threads = intent.getIntExtra("threads", 1)
        thread(name = "measure") { runOnUiThread { text.text = "measuring…" }; measure(mode, threads) { line ->
            runOnUiThread { text.append("\n$line") }
        } }
    }

    private fun measure(mode: Mode, threads: Int, say: (String) -> Unit) {
        try {
            val sha256 = String(assets.open("bundle.sha256").readBytes()).trim()
            val bundle = Bundle(sha256) { name -> assets.open("bundle/$name").use { it.readBytes() } }
            val content = Measure(this, bundle, mode, threads, say).document().toString()
            // Whole or not at all: a part of a result is none.
            val place = File(getExternalFilesDir(null), "result.json")
            val part = File(place.path + ".part")
            part.writeText(content)
            check(part.renameTo(place)) { "cannot write $place" }
            say("result: $place")
        } catch (error: Exception) {
            say("error: $error")
        }
    }
}
