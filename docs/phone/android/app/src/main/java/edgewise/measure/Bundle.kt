package edgewise.measure

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import org.json.JSONObject

/** What a bundle holds, each entry held against its digest before it is used. [read] gives an entry's bytes. */
class Bundle(val sha256: String, private val read: (String) -> ByteArray) {
    val manifest = JSONObject(String(read("manifest.json")))
    private val slice = manifest.getJSONObject("slice")
    val shape = slice.getJSONArray("shape").let { found -> IntArray(3) { found.getInt(it) } }
    val count = slice.getInt("count")
    val labels = slice.getString("labels").chunked(4).map { it.toInt(16) }
    val images = entry("slice/images.u8")

    val files: List<JSONObject> = manifest.getJSONArray("files").let { found ->
        List(found.length()) { found.getJSONObject(it) }
    }

    fun entry(name: String): ByteArray {
        val content = read(name)
        val wanted = manifest.getJSONObject("entries").getString(name)
        require(digest(content) == wanted) { "$name differs from what was written: unpack the bundle again" }
        return content
    }

    /** The golden images of a file, one uint8 [C, H, W] after the other; null where it has none. */
    fun golden(file: JSONObject): ByteArray? {
        if (file.isNull("golden")) return null
        val content = entry(file.getJSONObject("golden").getString("entry"))
        val size = ByteBuffer.wrap(content).order(ByteOrder.LITTLE_ENDIAN).getLong(0).toInt()
        val place = JSONObject(String(content, 8, size)).getJSONObject("images").getJSONArray("data_offsets")
        return content.copyOfRange(8 + size + place.getInt(0), 8 + size + place.getInt(1))
    }
}

fun digest(content: ByteArray): String =
    MessageDigest.getInstance("SHA-256").digest(content).joinToString("") { "%02x".format(it) }

/** What a file is fed: bytes [1, H, W, C], or floats, (bytes / 255 - mean) / std by channel, [1, C, H, W] or [1, H, W, C]. */
class Fed(val floats: FloatArray?, val bytes: ByteArray?, val shape: LongArray)

fun feed(file: JSONObject, images: ByteArray, index: Int, shape: IntArray): Fed {
    val (channels, height, width) = shape
    val area = height * width
    val start = index * channels * area
    val last = longArrayOf(1, height.toLong(), width.toLong(), channels.toLong())
    if (file.getString("fed") == "bytes") {
        val laid = ByteArray(channels * area) { images[start + it % channels * area + it / channels] }
        return Fed(null, laid, last)
    }
    val mean = file.getJSONArray("mean")
    val std = file.getJSONArray("std")
    val isLast = file.getString("fed") == "channels-last"
    val laid = FloatArray(channels * area) {
        val channel = if (isLast) it % channels else it / area
        val value = (images[start + channel * area + (if (isLast) it / channels else it % area)].toInt() and 255) / 255f
        (value - mean.getDouble(channel).toFloat()) / std.getDouble(channel).toFloat()
    }
    return Fed(laid, null, if (isLast) last else longArrayOf(1, channels.toLong(), height.toLong(), width.toLong()))
}
