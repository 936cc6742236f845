"""Every environment of the project: ``nox -s deploy`` runs the main job, ``nox -s tests`` passes the tests."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

PYTHON = "3.11"
ALL = "onnx,xnnpack,coreml"


STRICT = ("--config-settings", "editable_mode=strict")
"""An installation that mypy and import-linter can read: a folder of links, laid out as the import names are."""


def _install(session: nox.Session, extras: str, *settings: str) -> None:
    # Pinned and first: an unpinned torch takes several gigabytes of CUDA packages along.
    session.install("torch==2.13.0")
    session.install(*settings, "-e", f".[{extras}]")


@nox.session(python=PYTHON)
def docs(session: nox.Session) -> None:
    """The documentation as a site, in build/site; a broken link fails it. ``-- serve`` shows it in a browser instead."""
    session.install("mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "annotated-types>=0.7,<1")
    # Its reference is read from the source's text, so that torch need not be installed.
    session.install("--no-deps", "-e", ".")
    session.run("mkdocs", *(session.posargs or ("build", "--strict")))


@nox.session(python=PYTHON)
def page(session: nox.Session) -> None:
    """The report's page in a browser: axe-core, widths, keyboard, sheets of paper (Chromium or Chrome, and npm, needed)."""
    session.install("torch==2.13.0")
    session.install("-e", ".[dev]")
    session.run("npm", "install", "--no-save", "--no-package-lock", "axe-core@4", external=True)
    session.run("python", "-m", "pytest", "tests/pipeline/report/test_accessibility.py", *session.posargs)


@nox.session(python=PYTHON)
def deploy(session: nox.Session) -> None:
    """The main job: train, prune, substitute, quantize, export to three runtimes, verify, report."""
    _install(session, ALL)
    session.run("python", "-m", "edgewise", "run", "demo", *session.posargs)


@nox.session(python=PYTHON)
def tests(session: nox.Session) -> None:
    """The tests, a file at a time in up to four processes; arguments go to pytest instead."""
    _install(session, f"{ALL},dev")
    # A worker holds PyTorch and two runtimes, so that more of them ask for memory before they ask for cores.
    everything = ["-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "-m", "not slow"]
    session.run("python", "-m", "pytest", *(session.posargs or everything), env={"OMP_NUM_THREADS": "1"})


@nox.session(python=PYTHON)
def tests_slow(session: nox.Session) -> None:
    """The tests that take longer."""
    _install(session, f"{ALL},dev")
    session.run("python", "-m", "pytest", "-m", "slow", *session.posargs)


@nox.session(python=PYTHON)
def attacks(session: nox.Session) -> None:
    """Every attack on recipes, files, evidence and runs, many times; writes the table of docs/reliability.md."""
    _install(session, f"{ALL},dev")
    settings = {"EDGEWISE_ATTACKS": "all", "EDGEWISE_ATTACKS_TABLE": "docs/reliability.md", "OMP_NUM_THREADS": "1"}
    session.run("python", "-m", "pytest", "tests/attacks", *session.posargs, env=settings)


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Ruff and the import contract."""
    session.install("ruff==0.17.6", "import-linter>=2.16,<3")
    session.install("--no-deps", *STRICT, "-e", ".")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session(python=PYTHON)
def types(session: nox.Session) -> None:
    """mypy, strict."""
    _install(session, f"{ALL},dev", *STRICT)
    session.run("mypy")


RUNTIMES = {
    "onnx": "onnx", "onnx_web": "onnx", "ort": "onnx", "xnnpack": "onnx", "coreml": "onnx", "coreml_delegate": "xnnpack", "openvino": "openvino",
    "litert": "onnx", "vulkan": "xnnpack", "ethos_u": "xnnpack",
}  # fmt: skip
"""Target -> the runtime that times its float steps: its own or one that installs beside it."""


def _alone(name: str, runtime: str) -> None:
    """A session called as its target: ``nox -s onnx``."""

    def build(session: nox.Session) -> None:
        extras = dict.fromkeys((runtime, name)) if runtime == "onnx" else (name,)
        _install(session, ",".join(extras))
        if name == "onnx_web":
            _install_web_runtime(session)
        if name not in (*ALL.split(","), "ort"):  # what the project's own tests cannot run where it is not installed
            session.install("pytest>=9")
            own = sorted(map(str, Path("tests/targets").glob(f"test_{name}*.py")))
            common = [f"tests/targets/test_{what}.py" for what in ("grouped", "inside", "plain_operators")]
            session.run("python", "-m", "pytest", *own, *common)
        job = ("--target", name, "--runtime", runtime, "--out", f"runs/{name}")
        session.run("python", "-m", "edgewise", "run", *_network(session), *job)

    build.__doc__ = (
        f"One network for {name} alone, in an environment of its own: ResNet-20 where it is given, else digits."
    )
    nox.session(python=PYTHON, name=name)(build)


def _install_web_runtime(session: nox.Session) -> None:
    session.run("npm", "install", "--no-save", "--no-package-lock", "onnxruntime-web@1", external=True)


def _network(session: nox.Session) -> list[str]:
    """The published ResNet-20 on CIFAR-10 where both are given, after ``--`` or by the environment; else the main job."""
    given = list(session.posargs)
    if {"EDGEWISE_WEIGHTS", "EDGEWISE_DATA"} <= os.environ.keys():
        given += ["--weights", os.environ["EDGEWISE_WEIGHTS"], "--data", os.environ["EDGEWISE_DATA"]]
    return ["cifar_resnet20_int8" if {"--weights", "--data"} <= set(given) else "demo", *given]


for _name, _runtime in RUNTIMES.items():
    _alone(_name, _runtime)


@nox.session(python=PYTHON)
def search(session: nox.Session) -> None:
    """The best recipe for the digits: 30 trials on two workers; arguments go to the search."""
    _install(session, "onnx,search")
    wanted = ("--trials", "30", "--workers", "2", "--out", "runs/search-demo")
    session.run("python", "-m", "edgewise", "search", "demo", *wanted, *session.posargs)


@nox.session(python=PYTHON)
def search_postgres(session: nox.Session) -> None:
    """A search on a real PostgreSQL, by two workers with separate stores (Debian's package postgresql needed)."""
    _install(session, "onnx,dev,search_postgresql")
    session.run("python", "-m", "pytest", "tests/pipeline/search/test_postgresql.py", *session.posargs)


@nox.session(python=PYTHON)
def arm64(session: nox.Session) -> None:
    """The float and the int8 ONNX file on emulated Arm processors (root, debootstrap, qemu-user-static needed).

    ``EDGEWISE_ARM64_IMAGES``: the first so many test images only, since emulation is slow.
    """
    _install(session, "onnx,dev")
    network = _network(session)
    session.run("python", "-m", "edgewise", "run", *network, "--target", "onnx", "--out", "runs/arm64")
    files = sorted(str(path) for path in Path("runs/arm64/artifacts/onnx").glob("*.onnx"))
    data = network[network.index("--data") + 1] if "--data" in network else "digits"
    count = os.environ.get("EDGEWISE_ARM64_IMAGES")
    some = ["--images", count] if count else []
    session.run(
        "python", "-m", "edgewise.studies.arm64", *files, "--data", data, *some, "--out", "runs/arm64/arm64.json"
    )


@nox.session(python=PYTHON)
def device(session: nox.Session) -> None:
    """The main job's ONNX and ExecuTorch files on devices that are here: emulated Arm behind SSH, headless Chromium, node.

    Root, and Debian's openssh-server, debootstrap, qemu-user-static, busybox-static and g++-aarch64-linux-gnu; for the
    browser chromium, nodejs and ``npm install onnxruntime-web``. ``EDGEWISE_DEVICE_IMAGES``: labelled images (default
    200), since emulation is slow.
    """
    _install(session, "onnx,xnnpack,dev")
    wanted = ("--target", "onnx", "--target", "xnnpack", "--out", "runs/device")
    session.run("python", "-m", "edgewise", "run", "demo", *wanted, *session.posargs)
    images = os.environ.get("EDGEWISE_DEVICE_IMAGES", "200")
    session.run("python", "-m", "edgewise", "bundle", "runs/device", "--images", images)
    session.run("python", "-m", "edgewise.studies.arm64.device", "runs/device/bundle.pyz")
    if Path("node_modules/onnxruntime-web").is_dir():
        for browser in ("chromium", "node"):
            at = ("--device", f"web://{browser}")
            session.run("python", "-m", "edgewise", "bench", "runs/device/bundle.pyz", *at)
    session.run("python", "-m", "edgewise", "report", "runs/device")


@nox.session(python=PYTHON)
def cifar(session: nox.Session) -> None:
    """ResNet-20 on CIFAR-10: ``nox -s cifar -- --weights FILE --data cifar10:DIR``."""
    _install(session, ALL)
    session.run("python", "-m", "edgewise", "run", "cifar_resnet20", *session.posargs)


@nox.session(python=PYTHON)
def prune_curve(session: nox.Session) -> None:
    """ResNet-56 at 2x, 2.57x, 4x fewer MACs and half the time: ``nox -s prune_curve -- --weights FILE --data cifar10:DIR``."""
    _install(session, "onnx")
    session.run("python", "-m", "edgewise.studies.pruning_curve", *session.posargs)


@nox.session(python=PYTHON)
def prune_time(session: nox.Session) -> None:
    """A time budget against uniform ratios of equal measured time and training; arguments as for ``prune_curve``."""
    _install(session, "onnx")
    points = [
        part
        for rule in ("sensitivity", "global", "layer,round_to=8")
        for part in ("--point", f"latency=1/2,scope={rule}")
    ]
    session.run("python", "-m", "edgewise.studies.pruning_curve", "--out", "runs/prune_time", *points, *session.posargs)


@nox.session(python=PYTHON)
def journey(session: nox.Session) -> None:
    """Every architecture at full size to every target: ``nox -s journey -- resnet18 --target onnx --target litert``."""
    given = session.posargs
    named = [name for flag, name in itertools.pairwise(given) if flag == "--target"]
    _install(session, ",".join(dict.fromkeys([*ALL.split(","), *named])))
    if "onnx_web" in named:
        _install_web_runtime(session)
    session.run("python", "-m", "edgewise.studies.architectures", *session.posargs)


@nox.session(python=PYTHON)
def evaluator(session: nox.Session) -> None:
    """The Core ML evaluation against PyTorch, every architecture: ``nox -s evaluator -- [MODEL ...] --data cifar10:DIR``."""
    _install(session, "coreml")
    session.run("python", "-m", "edgewise.studies.reference_evaluation", *session.posargs)


@nox.session(python=PYTHON)
def substitution(session: nox.Session) -> None:
    """What substitution costs and saves, stage by stage: ``nox -s substitution -- [RECIPE] --weights F --data D``.

    RECIPE: separate_resnet20 (the default), separate_resnet56 or separate_vgg16, or path/to/recipe.py:function. Writes
    a report, ``substitution.md`` and ``substitution.json``; stopped, it goes on from its last epoch.
    """
    _install(session, "onnx,xnnpack")
    named = session.posargs and not session.posargs[0].startswith("-")
    chosen = session.posargs if named else ["separate_resnet20", *session.posargs]
    session.run("python", "-m", "edgewise.studies.substitution", *chosen)


@nox.session(python=PYTHON)
def oracle(session: nox.Session) -> None:
    """Names, shapes and logits against torchvision's and timm's own definitions."""
    session.install("torch==2.13.0")
    session.install("--no-deps", "torchvision==0.28.*", "timm")
    session.install("huggingface_hub", "pyyaml", "safetensors", "pillow", "numpy", "pytest")
    session.run("python", "-m", "pytest", "tests/models/test_parity.py", *session.posargs)


@nox.session(python=PYTHON)
def bench(session: nox.Session) -> None:
    """Times the files of the main job side by side; give files as arguments for others."""
    _install(session, ALL)
    files = session.posargs or sorted(str(p) for p in Path("runs").glob("*/artifacts/*/*") if _timed(p))
    if not files:
        session.error("there is no file to time yet; run nox -s deploy first, or name files after --")
    session.run("python", "-m", "edgewise", "bench", *files)


@nox.session(python=PYTHON)
def peers(session: nox.Session) -> None:
    """Our int8 files against the runtimes' own quantizers: ``nox -s peers -- --network resnet20=FILE --data cifar10:DIR``."""
    _install(session, "onnx,xnnpack,litert")
    session.install("nncf==3.4.*")
    session.run("python", "-m", "edgewise.studies.peers", *session.posargs)


@nox.session(python=PYTHON)
def bench_training(session: nox.Session) -> None:
    """What a step of quantization-aware training costs beside a float one, on a GPU where there is one."""
    _install(session, "onnx")
    session.run("python", "-m", "edgewise.studies.training_step", *session.posargs)


@nox.session(python=PYTHON)
def bench_blockwise(session: nox.Session) -> None:
    """Steps a second of block-wise distillation, without and with what makes them cheap, interleaved."""
    _install(session, "onnx")
    session.run("python", "-m", "edgewise.studies.blockwise_step", *session.posargs)


@nox.session(python=PYTHON)
def gpu(session: nox.Session) -> None:
    """Fine-tuning and int8 training on a GPU against the processor: ``nox -s gpu -- --weights F --data D --log LOG.md``."""
    _install(session, "onnx")
    session.run("python", "-m", "edgewise.studies.gpu", *session.posargs)


@nox.session(python=PYTHON)
def faults(session: nox.Session) -> None:
    """Plants every fault, checks that its gate and no other catches it, and writes docs/fault-matrix.md."""
    _install(session, "onnx,xnnpack,dev")
    session.run("python", "-m", "pytest", "tests/faults", *session.posargs, env={"EDGEWISE_WRITE_MATRIX": "1"})


@nox.session(python=PYTHON)
def false_alarms(session: nox.Session) -> None:
    """How often the gates alarm without a cause, and see a known one: ``nox -s false_alarms -- FILE --data D``."""
    _install(session, ALL)
    default = ["runs/demo/artifacts/onnx/demo-quantize.onnx", "--data", "digits"]
    session.run("python", "-m", "edgewise.studies.false_alarms", *(session.posargs or default))


def _timed(path: Path) -> bool:
    return path.suffix in (".onnx", ".pte") and os.access(path, os.R_OK)
