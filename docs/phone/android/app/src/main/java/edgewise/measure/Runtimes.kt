package edgewise.measure

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.io.File
import java.nio.ByteBuffer
import java.nio.FloatBuffer
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** A loaded file: one image as it is fed -> the logits. */
typealias Net = (Fed) -> FloatArray

/** Target -> how its files are loaded, and what that runtime is called in the result. */
class Runtime(val name: String, val version: String, val provider: String, val load: (File, Int) -> Net)

val RUNTIMES = mapOf(
    "onnx" to Runtime("onnxruntime", OrtEnvironment.getEnvironment().version, "CPUExecutionProvider", ::loadOnnx),
    "xnnpack" to Runtime("executorch", BuildConfig.EXECUTORCH, "XNNPACK", ::loadExecutorch),
)

private fun loadOnnx(path: File, threads: Int): Net {
    val environment = OrtEnvironment.getEnvironment()
    val options = OrtSession.SessionOptions().apply {
        setIntraOpNumThreads(threads)
        setInterOpNumThreads(1)
        addConfigEntry("session.intra_op.allow_spinning", "0")
    }
    val session = environment.createSession(path.path, options)
    val name = session.inputNames.first()
    return { fed ->
        val tensor = if (fed.floats != null) {
            OnnxTensor.createTensor(environment, FloatBuffer.wrap(fed.floats), fed.shape)
        } else {
            OnnxTensor.createTensor(environment, ByteBuffer.wrap(fed.bytes!!), fed.shape, OnnxJavaType.UINT8)
        }
        tensor.use { given ->
            session.run(mapOf(name to given)).use { found ->
                @Suppress("UNCHECKED_CAST")
                (found[0].value as Array<FloatArray>)[0]
            }
        }
    }
}

private fun loadExecutorch(path: File, threads: Int): Net {
    val module = Module.load(path.path, Module.LOAD_MODE_MMAP, threads)
    return { fed ->
        val floats = requireNotNull(fed.floats) { "files that take bytes have no tensor of bytes in this runtime" }
        module.forward(EValue.from(Tensor.fromBlob(floats, fed.shape)))[0].toTensor().dataAsFloatArray
    }
}
