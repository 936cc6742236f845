package edgewise.measure

import android.app.ActivityManager
import android.content.Context
import android.os.Build
import android.os.Debug
import android.os.SystemClock
import android.util.Base64
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.ceil
import org.json.JSONArray
import org.json.JSONObject

/** Least calls and seconds of each file: as the bundle's own runner has them. */
enum class Mode(val calls: Int, val seconds: Double, val blocks: Int) { quick(128, 10.0, 30), normal(1024, 60.0, 30) }

private const val MOST_KEPT = 200
private const val REFERENCE_EVERY_NS = 20_000_000L

/** The same steps as the bundle's runner, and the same document; [say] tells where it is. */
class Measure(
    private val context: Context,
    private val bundle: Bundle,
    private val mode: Mode,
    private val threads: Int,
    private val say: (String) -> Unit,
) {
    fun document(): JSONObject {
        val rows = mutableListOf<JSONObject>()
        val looked = mutableListOf<Looked>()
        for (file in bundle.files) {
            say("looking at ${file.getString("name")}")
            rows += row(file, looked)
        }
        val groups = looked.groupBy { it.row.getString("target") }.map { (target, own) ->
            say("timing $target")
            JSONObject().put("target", target).put("blocks", time(own))
        }
        return JSONObject()
            .put("schema", 1).put("kind", "device").put("bundle_sha256", bundle.sha256).put("runner", "android 1")
            .put("finished", true).put("mode", modeFields()).put("device", device()).put("governor", JSONObject.NULL)
            .put("threads", threads).put("pinned", JSONArray()).put("groups", JSONArray(groups)).put("rows", JSONArray(rows))
    }

    private class Looked(val row: JSONObject, val net: Net, val image: Fed)

    private fun row(file: JSONObject, looked: MutableList<Looked>): JSONObject {
        val row = JSONObject().put("target", file.getString("target")).put("file", file.getString("name"))
            .put("error", JSONObject.NULL).put("missing", false).put("latency", JSONObject.NULL)
        val runtime = RUNTIMES[file.getString("target")]
            ?: return row.put("error", "this app has no runtime for ${file.getString("target")}").put("missing", true)
        try {
            looked += look(file, runtime, row)
        } catch (error: Exception) {
            row.put("error", "its runtime refused it: $error".take(300))
        }
        return row
    }

    private fun look(file: JSONObject, runtime: Runtime, row: JSONObject): Looked {
        val started = SystemClock.elapsedRealtimeNanos()
        val path = unpack(file)
        val before = SystemClock.elapsedRealtimeNanos()
        val net = runtime.load(path, threads)
        val first = milliseconds(before)
        val image = feed(file, bundle.images, 0, bundle.shape)
        val calling = SystemClock.elapsedRealtimeNanos()
        net(image)
        row.put("first_call_ms", milliseconds(calling))
        val golden = bundle.golden(file)?.let { images ->
            answers(net, file, images, file.getJSONObject("golden").getInt("count"))
        }
        row.put("golden_answers", golden?.let(::base64) ?: JSONObject.NULL)
        val classes = answers(net, file, bundle.images, bundle.count).map { values -> values.indices.maxBy { values[it] } }
        val right = classes.indices.count { classes[it] == bundle.labels[it] }
        val again = SystemClock.elapsedRealtimeNanos()
        runtime.load(path, threads)
        row.put("load_ms", JSONObject().put("first", first).put("again", milliseconds(again)))
            .put("sha256", file.getString("sha256")).put("peak_memory_bytes", JSONObject.NULL)
            .put("answers", classes.joinToString("") { "%04x".format(it) })
            .put("accuracy", JSONObject().put("top1", right.toDouble() / bundle.count).put("n", bundle.count))
            .put("runtime", JSONObject().put("name", runtime.name).put("version", runtime.version)
                .put("provider", runtime.provider))
            .put("seconds", milliseconds(started) / 1000)
        return Looked(row, net, image)
    }

    /** Every part of the file, held against its digest as it is laid out, so that its own digest is the bundle's. */
    private fun unpack(file: JSONObject): File {
        val entries = file.getJSONArray("entries")
        for (index in 0 until entries.length()) {
            val place = File(context.cacheDir, entries.getString(index))
            place.parentFile!!.mkdirs()
            place.writeBytes(bundle.entry(entries.getString(index)))
        }
        return File(context.cacheDir, file.getString("path"))
    }

    private fun answers(net: Net, file: JSONObject, images: ByteArray, count: Int): List<FloatArray> =
        List(count) { net(feed(file, images, it, bundle.shape)) }

    private fun base64(answers: List<FloatArray>): String {
        val bytes = ByteBuffer.allocate(4 * answers.sumOf { it.size }).order(ByteOrder.LITTLE_ENDIAN)
        answers.forEach { values -> values.forEach(bytes::putFloat) }
        return Base64.encodeToString(bytes.array(), Base64.NO_WRAP)
    }

    private class Times(var calls: Long = 0, var busy: Long = 0, val kept: MutableList<JSONArray> = mutableListOf())

    /** Files in turn, in an order drawn anew for each round, with fixed work between, so that a slower clock or a neighbour shows. */
    private fun time(looked: List<Looked>): JSONArray {
        repeat(3) { looked.forEach { it.net(it.image) } }
        val warm = SystemClock.elapsedRealtimeNanos()
        looked.forEach { it.net(it.image) }
        val round = (SystemClock.elapsedRealtimeNanos() - warm).coerceAtLeast(1)
        val duration = (1e9 * mode.seconds * looked.size / mode.blocks).toLong()
        val least = ceil(mode.calls.toDouble() / mode.blocks).toInt()
        val stride = (maxOf(duration / round, least.toLong()) / MOST_KEPT + 1).toInt()
        val between = (REFERENCE_EVERY_NS / round).coerceAtLeast(1).toInt()
        val times = looked.map { Times() }
        val blocks = JSONArray()
        val order = looked.indices.toMutableList()
        repeat(mode.blocks) {
            times.forEach { it.kept += JSONArray() }
            blocks.put(block(looked, times, order, duration, least, stride, between))
        }
        looked.forEachIndexed { index, one ->
            one.row.put("latency", JSONObject().put("times_ns", JSONArray(times[index].kept)).put("calls", times[index].calls)
                .put("busy_ns", times[index].busy).put("per_timing", 1))
        }
        return blocks
    }

    private fun block(
        looked: List<Looked>, times: List<Times>, order: MutableList<Int>, duration: Long, least: Int, stride: Int, between: Int,
    ): JSONObject {
        val references = mutableListOf<Pair<Long, Long>>()
        val started = SystemClock.elapsedRealtimeNanos()
        val cpu = Debug.threadCpuTimeNanos()
        var rounds = 0
        do {
            if (rounds % between == 0) references += reference()
            order.shuffle()  // what ran before leaves its own in the caches
            for (index in order) {
                val before = SystemClock.elapsedRealtimeNanos()
                looked[index].net(looked[index].image)
                val taken = (SystemClock.elapsedRealtimeNanos() - before).coerceAtLeast(1)
                times[index].calls += 1
                times[index].busy += taken
                if (rounds % stride == 0) times[index].kept.last().put(taken)
            }
            rounds += 1
        } while (SystemClock.elapsedRealtimeNanos() - started < duration || rounds < least)
        val spent = Debug.threadCpuTimeNanos() - cpu
        return JSONObject()
            .put("wall_ms", milliseconds(started)).put("cpu_ms", spent / 1e6)
            .put("reference_wall_ms", references.sumOf { it.first } / 1e6)
            .put("reference_cpu_ms", references.sumOf { it.second } / 1e6)
            .put("reference_ms", references.map { it.second }.sorted()[references.size / 2] / 1e6)
            .put("stolen_ticks", JSONObject.NULL).put("clock_khz", JSONObject.NULL).put("temperature_c", JSONObject.NULL)
    }

    @Volatile private var sink = 0

    private fun reference(): Pair<Long, Long> {
        val cpu = Debug.threadCpuTimeNanos()
        val wall = SystemClock.elapsedRealtimeNanos()
        var value = 1
        repeat(400_000) { value = (value * 1103515245 + 12345) and 0x7fffffff }
        sink = value
        return Pair(SystemClock.elapsedRealtimeNanos() - wall, Debug.threadCpuTimeNanos() - cpu)
    }

    private fun milliseconds(since: Long) = (SystemClock.elapsedRealtimeNanos() - since) / 1e6

    private fun modeFields() = JSONObject().put("name", mode.name).put("calls", mode.calls).put("seconds", mode.seconds)
        .put("blocks", mode.blocks)

    private fun device(): JSONObject {
        val memory = ActivityManager.MemoryInfo()
        (context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager).getMemoryInfo(memory)
        val cores = List(java.lang.Runtime.getRuntime().availableProcessors()) {
            JSONObject().put("id", it).put("max_khz", JSONObject.NULL).put("part", JSONObject.NULL)
        }
        val emulator = if (Build.HARDWARE in setOf("ranchu", "goldfish")) "android emulator" else JSONObject.NULL
        return JSONObject()
            .put("name", Build.DEVICE).put("model", "${Build.MANUFACTURER} ${Build.MODEL}")
            .put("os", "Android ${Build.VERSION.RELEASE}").put("kernel", System.getProperty("os.version") ?: "")
            .put("machine", System.getProperty("os.arch") ?: "").put("cpu", Build.HARDWARE).put("cores", JSONArray(cores))
            .put("memory_bytes", memory.totalMem).put("emulated", emulator)
    }
}
