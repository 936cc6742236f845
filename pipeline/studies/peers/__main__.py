"""``python -m edgewise.studies.peers [--network NAME[=WEIGHTS] ...] [--data D]``: the comparison from the command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from edgewise.library_noise import quieten_libraries

KINDS = ("files", "accuracy", "time")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is still to be done and show the table; 1 where a contender of ours failed to be made."""
    options = _parser().parse_args(arguments)
    quieten_libraries()
    networks = options.network or ["tiny_resnet"]
    for network in networks:
        name, _, weights = network.partition("=")
        _measure_network(name, Path(weights) if weights else None, options)
    results = _collect_results(options.out)
    return _show_results(results, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgewise.studies.peers", description=__doc__)
    parser.add_argument(
        "--network", action="append", metavar="NAME[=WEIGHTS]", help="repeat for several; default: the digits network"
    )
    parser.add_argument("--data", default="digits", metavar="D", help="a data set: reader or reader:PATH")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"), metavar="DIR", help="results and files")
    parser.add_argument("--only", choices=KINDS, action="append", help="one kind of work alone; repeat for several")
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long to time each network (default 60)")
    parser.add_argument("--again", action="store_true", help="time anew, where there are times already")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also write the table as Markdown")
    parser.add_argument("--json", action="store_true", help="print one JSON document in place of the table")
    return parser


def _measure_network(name: str, weights: Path | None, options: argparse.Namespace) -> None:
    from edgewise.report.watch import Watch
    from edgewise.studies.peers import contenders, measure
    from edgewise.studies.peers.subject import load

    watch, folder = Watch(), options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    kinds = options.only or KINDS
    results = _read_results(folder)
    if "files" in kinds or "accuracy" in kinds or not (folder / "image.safetensors").exists():
        subject = load(name, weights, options.data, folder)
        save_file({"image": measure.image_of(subject).contiguous()}, folder / "image.safetensors")
    if "files" in kinds:
        for contender in contenders.installed():
            if contender.name not in results:
                watch.say(f"{name}: making {contender.name}")
                results[contender.name] = _make_entry(contender, subject, folder)
                _write_results(folder, results)
    whole = {c.name: c for c in contenders.installed() if c.name in results and not results[c.name].get("error")}
    if "accuracy" in kinds:
        for contender in whole.values():
            entry = results[contender.name]
            if "judged" not in entry:
                own = _stored_answers(contender, subject, folder, watch.track)
                reference = _stored_answers(_float_of(contender, whole), subject, folder, watch.track)
                entry["judged"] = measure.accuracy(own, reference, subject.data.test.labels, subject.trained)
                _write_results(folder, results)
    if "time" in kinds and (options.again or not all("timed" in results[n] for n in whole)):
        watch.say(f"{name}: timing {len(whole)} files")
        image = load_file(folder / "image.safetensors")["image"]
        for contender_name, times in measure.times(whole, image, folder, options.seconds).items():
            results[contender_name]["timed"] = times
        _write_results(folder, results)


def _make_entry(contender: Any, subject: Any, folder: Path) -> dict[str, Any]:
    """The entry of a contender, whose failure is a result too."""
    from edgewise.studies.peers import contenders

    start = time.perf_counter()
    entry = {"title": contender.title, "runtime": contender.runtime, "side": contender.side}
    try:
        contenders.write(contender, subject, folder)
    except Exception as error:  # whatever a peer's quantizer raises is told in its line of the table
        return entry | {"error": f"{type(error).__name__}: {error}"[:500]}
    size = contenders.path_of(contender, folder).stat().st_size
    return entry | {"bytes": size, "seconds": time.perf_counter() - start}


def _stored_answers(contender: Any, subject: Any, folder: Path, track: Any) -> Any:
    from edgewise.studies.peers import measure

    place = folder / f"{contender.name}.answers.safetensors"
    if not place.exists():
        answers = measure.answers(contender, subject, folder, track)
        save_file({"logits": answers.contiguous()}, place)
    return load_file(place)["logits"]


def _float_of(contender: Any, whole: dict[str, Any]) -> Any:
    return next(c for c in whole.values() if c.runtime == contender.runtime and c.side == "float")


def _read_results(folder: Path) -> dict[str, Any]:
    place = folder / "results.json"
    results: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
    return results


def _write_results(folder: Path, results: dict[str, Any]) -> None:
    from edgewise.store.whole import write_whole

    write_whole(folder / "results.json", json.dumps(results, indent=1).encode())


def _collect_results(out: Path) -> dict[str, Any]:
    """Network -> its files in the contenders' order, of all that was ever measured in ``out``."""
    from edgewise.studies.peers.contenders import CONTENDERS

    results = {}
    for place in sorted(out.glob("*/results.json")):
        entries = _read_results(place.parent)
        results[place.parent.name] = {
            "files": [{"name": c.name} | entries[c.name] for c in CONTENDERS if c.name in entries]
        }
    return results


def _show_results(results: dict[str, Any], options: argparse.Namespace) -> int:
    from edgewise.store.machine import read_environment
    from edgewise.store.whole import write_whole
    from edgewise.studies.peers import tables

    machine = read_environment(1)
    document = {"environment": machine, "networks": results, "verdicts": list(tables.verdicts(results))}
    write_whole(options.out / "peers.json", json.dumps(document, indent=1).encode())
    if options.page is not None:
        write_whole(options.page, tables.markdown(results, machine).encode())
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        from rich.console import Console

        Console(highlight=False, width=None if sys.stdout.isatty() else 150).print(*tables.tables(results))
        print("\n".join(document["verdicts"]))
    failures = [f for d in results.values() for f in d["files"] if f["side"] == "ours" and f.get("error")]
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
