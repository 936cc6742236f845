"""``edgewise bundle``: one file that measures a run's files on another machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgewise.commands.console import PASSED, add_command, print_json, print_note
from edgewise.commands.report import whole_files


def add_parser(commands: Any) -> None:
    """``bundle RUN``."""
    text = "one file that measures a run's files on another machine"
    parser = add_command(commands, "bundle", text, write_bundle)
    parser.add_argument("folder", type=Path, metavar="RUN", help="the folder that a run wrote")
    parser.add_argument("--target", action="append", metavar="T", help="these targets' files alone; repeat for several")
    parser.add_argument("--images", type=int, metavar="N", help="labelled test images to take along (default 1000)")
    parser.add_argument("--data", metavar="D", help="where the run's data lie now, if elsewhere: reader or reader:PATH")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: bundle.pyz in RUN")


def write_bundle(options: argparse.Namespace) -> int:
    """Write the bundle, and print what it holds."""
    from edgewise.device import bundle
    from edgewise.library_noise import quieten_libraries
    from edgewise.report.document import Report

    quieten_libraries()
    list(whole_files(Report.read(options.folder), options.folder, options.target or bundle.RUNS_ON_DEVICES))
    bundle_file = bundle.write(
        options.folder, options.target or (), options.images, options.out, say=print_note, data_name=options.data
    )
    files = [file.name for file in bundle_file.manifest.files]
    count = bundle_file.manifest.slice.count
    if options.json:
        document = {
            "bundle": str(bundle_file.path),
            "sha256": bundle_file.sha256,
            "bytes": bundle_file.bytes,
            "files": files,
            "images": count,
        }
        print_json(document)
        return PASSED
    print(f"{bundle_file.path}: {bundle_file.bytes:,} bytes, {', '.join(files)}, {count:,} labelled images")
    print(
        f"On the device: python3 {bundle_file.path.name} --quick; from here: edgewise bench {bundle_file.path} --device ssh://HOST"
    )
    return PASSED
