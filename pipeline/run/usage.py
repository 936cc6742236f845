"""A page of text beside each delivered file: code that loads it and feeds it, with its own names, shapes and numbers.

The Python code is run by a test as it stands; the code for phones is written from the same values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent

from edgewise.report import numbers
from edgewise.store.whole import write_whole
from edgewise.verify import manifest
from edgewise.verify.card import Card, path_of

SUFFIX = manifest.USAGE


def usage_path(artifact: Path) -> Path:
    """Where the page of a file lies."""
    return artifact.with_name(artifact.name + SUFFIX)


def write_usage(artifact: Path, card: Card) -> None:
    """Write the page beside a file that has its card."""
    write_whole(usage_path(artifact), describe_usage(artifact, card).encode())


def describe_usage(artifact: Path, card: Card) -> str:
    """The page: what the file is, takes and gives, and the code."""
    parts = [f"# {artifact.name}", _facts_table(artifact, card)]
    parts += [
        f"## {title}\n\n```{language}\n{code(artifact, card).strip()}\n```"
        for title, language, code in _code_samples(artifact)
    ]
    return "\n\n".join(parts) + "\n"


Code = Callable[[Path, Card], str]


def _code_samples(artifact: Path) -> Sequence[tuple[str, str, Code]]:
    """Title, language and writer of each piece of code, by what kind of file it is."""
    return {
        ".onnx": _ONNX, ".ort": _ONNX, ".pte": _EXECUTORCH, ".mlpackage": _COREML,
        ".tflite": _LITERT,
    }.get(artifact.suffix, ())  # fmt: skip


def _facts_table(artifact: Path, card: Card) -> str:
    row = card.row
    took = ""
    if row.latency is not None:
        took = f", {numbers.significant(row.latency.p50_ms)} ms on the machine that measured it"
    right = (
        f"top-1 {numbers.percent(row.accuracy.top1)} % of {row.accuracy.n:,} test images"
        if row.accuracy
        else "no accuracy measured"
    )
    name_in, name_out = card.input.get("name"), card.output.get("name")
    lines = [
        f"{card.model}, {row.precision or 'float'}, for {card.target}: {right}{took}. Verdict: **{row.verdict}**"
        + (f" ({row.reason})." if row.verdict != "pass" else ".")
        + _searched_words(card),
        "",
        "| | name | shape | type | meaning |",
        "|---|---|---|---|---|",
        f"| input | {name_in or '–'} | {card.input.get('shape')} | {card.input.get('dtype')} | {card.input.get('meaning')} |",
        f"| output | {name_out or '–'} | {card.output.get('shape')} | {card.output.get('dtype')} | {card.output.get('meaning')} |",
        "",
        f"Mean {_list_values(card.mean)}, deviation {_list_values(card.std)}"
        + (", applied by the file itself." if card.fed == "bytes" else ", applied before the file is called.")
        + f" Classes, in the order of the outputs: `classes` in `{path_of(artifact).name}`. Check the file on any machine with "
        f"`edgewise verify {artifact.name}`.",
    ]
    return "\n".join(lines)


def _searched_words(card: Card) -> str:
    """Of how many trials it is the choice: the more, the more luck is in the figures that chose it."""
    if not card.search_trials:
        return ""
    trials = f"{card.search_trials:,} trial{'' if card.search_trials == 1 else 's'}"
    return f" The choice of {trials} that a search judged on calibration images; these figures are of other images."


def _list_values(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


def _channels(card: Card, values: Sequence[float]) -> list[float]:
    """One value a channel, where the card has one for all."""
    return list(values) if len(values) == card.input_shape[0] else [values[0]] * card.input_shape[0]


def _preparation_code(card: Card) -> str:
    """Python that turns ``image.png`` into ``values``, what the file takes."""
    channels, height, width = card.input_shape
    mode = "RGB" if channels == 3 else "L"
    lines = [
        f'picture = Image.open("image.png").convert("{mode}").resize(({width}, {height}), Image.Resampling.BILINEAR)',
        f"image = np.asarray(picture).reshape({height}, {width}, {channels})",
    ]
    if card.fed == "bytes":
        return "\n".join([*lines, "values = image[None]"])
    turned = "" if card.fed == "channels-last" else ".transpose(2, 0, 1)"
    mean, std = (_list_values(_channels(card, values)) for values in (card.mean, card.std))
    return "\n".join(
        [
            *lines,
            f"mean, std = np.float32({mean}), np.float32({std})",
            f"values = np.ascontiguousarray(((image / np.float32(255) - mean) / std){turned}[None])",
        ]
    )


def _closing_code(artifact: Path) -> str:
    return f'classes = json.loads(Path("{path_of(artifact).name}").read_text(encoding="utf-8"))["classes"]\nprint(classes[int(np.argmax(answers))], answers.ravel())'


_HEAD = "import json\nfrom pathlib import Path\n\nimport numpy as np\n"


def _onnx_python(artifact: Path, card: Card) -> str:
    if artifact.suffix == ".ort":
        session = f'session = onnxruntime.InferenceSession("{artifact.name}", providers=["CPUExecutionProvider"])'
    else:
        session = f'session = onnxruntime.InferenceSession("{artifact.name}")'
    call = f'(answers,) = session.run(None, {{"{card.input.get("name", "x")}": values}})'
    return f"{_HEAD}import onnxruntime\nfrom PIL import Image\n\n{_preparation_code(card)}\n{session}\n{call}\n{_closing_code(artifact)}"


def _executorch_python(artifact: Path, card: Card) -> str:
    load = f'method = Runtime.get().load_program("{artifact.name}").load_method("forward")'
    call = "answers = method.execute([torch.from_numpy(values.copy())])[0].numpy()"
    return f"{_HEAD}import torch\nfrom executorch.runtime import Runtime\nfrom PIL import Image\n\n{_preparation_code(card)}\n{load}\n{call}\n{_closing_code(artifact)}"


def _coreml_python(artifact: Path, card: Card) -> str:
    name, out = card.input.get("name", "x"), card.output.get("name", "logits")
    load = f'model = coremltools.models.MLModel("{artifact.name}")  # runs on macOS'
    call = f'answers = model.predict({{"{name}": values}})["{out}"]'
    return f"{_HEAD}import coremltools\nfrom PIL import Image\n\n{_preparation_code(card)}\n{load}\n{call}\n{_closing_code(artifact)}"


def _shape(card: Card) -> list[int]:
    return [int(side) for side in card.input["shape"]]


def _brace_values(values: Sequence[float | int], suffix: str = "") -> str:
    return (
        "{" + ", ".join(f"{value:g}{suffix}" if not suffix else f"{float(value)!r}{suffix}" for value in values) + "}"
    )


def _normalising_comment(card: Card) -> str:
    """A comment that says what a phone must put into ``values``."""
    if card.fed == "bytes":
        return "the camera's bytes, row by row, channels last"
    mean, std = (_list_values(_channels(card, values)) for values in (card.mean, card.std))
    order = "row by row, channels last" if card.fed == "channels-last" else "one channel's plane after the other"
    return f"(byte / 255 - mean) / std with mean {mean} and std {std}, {order}"


def _onnx_cpp(artifact: Path, card: Card) -> str:
    kind = "uint8_t" if card.fed == "bytes" else "float"
    return dedent(f"""\
        #include <onnxruntime_cxx_api.h>
        #include <algorithm>
        #include <array>
        #include <vector>

        int classify(std::vector<{kind}>& values) {{  // {_normalising_comment(card)}
          static Ort::Env env;
          static Ort::Session session(env, ORT_TSTR("{artifact.name}"), Ort::SessionOptions{{}});
          const std::array<int64_t, 4> shape{_brace_values(_shape(card))};
          auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
          auto input = Ort::Value::CreateTensor<{kind}>(memory, values.data(), values.size(), shape.data(), shape.size());
          const char* inputs[] = {{"{card.input.get("name", "x")}"}};
          const char* outputs[] = {{"{card.output.get("name", "logits")}"}};
          auto answers = session.Run(Ort::RunOptions{{}}, inputs, &input, 1, outputs, 1);
          const float* first = answers[0].GetTensorData<float>();
          return static_cast<int>(std::max_element(first, first + {len(card.classes)}) - first);
        }}""")


def _onnx_kotlin(artifact: Path, card: Card) -> str:
    buffer, kind = ("ByteBuffer", ", OnnxJavaType.UINT8") if card.fed == "bytes" else ("FloatBuffer", "")
    shape = ", ".join(map(str, _shape(card)))
    return dedent(f"""\
        import ai.onnxruntime.*
        import java.nio.{buffer}

        // values: {_normalising_comment(card)}
        fun classify(model: ByteArray, values: {buffer}): Int {{
            val environment = OrtEnvironment.getEnvironment()
            environment.createSession(model).use {{ session ->
                OnnxTensor.createTensor(environment, values, longArrayOf({shape}){kind}).use {{ input ->
                    session.run(mapOf("{card.input.get("name", "x")}" to input)).use {{ result ->
                        val answers = (result[0].value as Array<FloatArray>)[0]
                        return answers.indices.maxByOrNull {{ answers[it] }}!!
                    }}
                }}
            }}
        }}""")


def _onnx_swift(artifact: Path, card: Card) -> str:
    kind = ".uInt8" if card.fed == "bytes" else ".float"
    return dedent(f"""\
        import OnnxRuntimeBindings

        // values: {_normalising_comment(card)}
        func classify(path: String, values: NSMutableData) throws -> Int {{
            let session = try ORTSession(env: ORTEnv(loggingLevel: .warning), modelPath: path, sessionOptions: nil)
            let input = try ORTValue(tensorData: values, elementType: {kind}, shape: {json.dumps(_shape(card))})
            let result = try session.run(
                withInputs: ["{card.input.get("name", "x")}": input], outputNames: ["{card.output.get("name", "logits")}"], runOptions: nil)
            let data = try result["{card.output.get("name", "logits")}"]!.tensorData() as Data
            let answers = data.withUnsafeBytes {{ Array($0.bindMemory(to: Float.self)) }}
            return answers.indices.max {{ answers[$0] < answers[$1] }}!
        }}""")


def _executorch_cpp(artifact: Path, card: Card) -> str:
    kind, scalar = ("uint8_t", "Byte") if card.fed == "bytes" else ("float", "Float")
    return dedent(f"""\
        #include <executorch/extension/module/module.h>
        #include <executorch/extension/tensor/tensor.h>
        #include <algorithm>
        #include <vector>

        using namespace executorch::extension;

        int classify(std::vector<{kind}>& values) {{  // {_normalising_comment(card)}
          static Module module("{artifact.name}");
          auto input = from_blob(values.data(), {_brace_values(_shape(card))}, executorch::aten::ScalarType::{scalar});
          const auto result = module.forward(input);
          if (!result.ok()) return -1;
          const float* first = result->at(0).toTensor().const_data_ptr<float>();
          return static_cast<int>(std::max_element(first, first + {len(card.classes)}) - first);
        }}""")


def _executorch_kotlin(artifact: Path, card: Card) -> str:
    kind, make = ("ByteArray", "fromBlobUnsigned") if card.fed == "bytes" else ("FloatArray", "fromBlob")
    shape = ", ".join(map(str, _shape(card)))
    return dedent(f"""\
        import org.pytorch.executorch.EValue
        import org.pytorch.executorch.Module
        import org.pytorch.executorch.Tensor

        // values: {_normalising_comment(card)}
        fun classify(path: String, values: {kind}): Int {{
            val input = Tensor.{make}(values, longArrayOf({shape}))
            val answers = Module.load(path).forward(EValue.from(input))[0].toTensor().dataAsFloatArray
            return answers.indices.maxByOrNull {{ answers[it] }}!!
        }}""")


def _executorch_swift(artifact: Path, card: Card) -> str:
    kind = "UInt8" if card.fed == "bytes" else "Float"
    return dedent(f"""\
        import ExecuTorch

        // values: {_normalising_comment(card)}
        func classify(path: String, values: [{kind}]) throws -> Int {{
            let module = Module(filePath: path)
            let input = Tensor<{kind}>(values, shape: {json.dumps(_shape(card))})
            let answers = try Tensor<Float>(module.forward(input)).scalars()
            return answers.indices.max {{ answers[$0] < answers[$1] }}!
        }}""")


def _litert_python(artifact: Path, card: Card) -> str:
    load = f'interpreter = Interpreter(model_path="{artifact.name}")\ninterpreter.allocate_tensors()'
    call = (
        'interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)\ninterpreter.invoke()\n'
        'answers = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])'
    )
    return f"{_HEAD}from ai_edge_litert.interpreter import Interpreter\nfrom PIL import Image\n\n{_preparation_code(card)}\n{load}\n{call}\n{_closing_code(artifact)}"


def _litert_kotlin(artifact: Path, card: Card) -> str:
    buffer = "ByteBuffer" if card.fed == "bytes" else "FloatBuffer"
    return dedent(f"""\
        import org.tensorflow.lite.Interpreter
        import java.nio.ByteBuffer
        import java.nio.{buffer}

        // {artifact.name} in a direct buffer, as FileChannel.map gives it; values, of a direct buffer in native order:
        // {_normalising_comment(card)}
        fun classify(model: ByteBuffer, values: {buffer}): Int =
            Interpreter(model).use {{ interpreter ->
                val answers = arrayOf(FloatArray({len(card.classes)}))
                interpreter.run(values, answers)
                answers[0].indices.maxByOrNull {{ answers[0][it] }}!!
            }}""").replace("import java.nio.ByteBuffer\nimport java.nio.ByteBuffer\n", "import java.nio.ByteBuffer\n")


def _coreml_swift(artifact: Path, card: Card) -> str:
    if card.fed == "bytes" and card.softmax:
        return dedent("""\
            import CoreML
            import Vision

            // The package is an image classifier: Vision scales the image and answers with names and probabilities.
            func classify(package: URL, image: CGImage) throws -> String? {
                let model = try VNCoreMLModel(for: MLModel(contentsOf: MLModel.compileModel(at: package)))
                let request = VNCoreMLRequest(model: model)
                request.imageCropAndScaleOption = .scaleFill
                try VNImageRequestHandler(cgImage: image).perform([request])
                return (request.results as? [VNClassificationObservation])?.first?.identifier
            }""")
    return dedent(f"""\
        import CoreML

        // values: {_normalising_comment(card)}, as an MLMultiArray of shape {json.dumps(_shape(card))}
        func classify(package: URL, values: MLMultiArray) throws -> Int {{
            let model = try MLModel(contentsOf: MLModel.compileModel(at: package))
            let input = try MLDictionaryFeatureProvider(dictionary: ["{card.input.get("name", "x")}": values])
            let answers = try model.prediction(from: input).featureValue(for: "{card.output.get("name", "logits")}")!.multiArrayValue!
            return (0..<answers.count).max {{ answers[$0].floatValue < answers[$1].floatValue }}!
        }}""")


_ONNX: Sequence[tuple[str, str, Code]] = (
    ("Python", "python", _onnx_python), ("C++", "cpp", _onnx_cpp), ("Kotlin", "kotlin", _onnx_kotlin),
    ("Swift", "swift", _onnx_swift),
)  # fmt: skip
_EXECUTORCH: Sequence[tuple[str, str, Code]] = (
    ("Python", "python", _executorch_python), ("C++", "cpp", _executorch_cpp), ("Kotlin", "kotlin", _executorch_kotlin),
    ("Swift", "swift", _executorch_swift),
)  # fmt: skip
_COREML: Sequence[tuple[str, str, Code]] = (("Python", "python", _coreml_python), ("Swift", "swift", _coreml_swift))
_LITERT: Sequence[tuple[str, str, Code]] = (("Python", "python", _litert_python), ("Kotlin", "kotlin", _litert_kotlin))
