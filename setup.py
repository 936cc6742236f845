"""Which packages there are: ``edgewise`` is the folder ``pipeline``, and the three leaves lie inside of it by name alone.

The folders' names are what a person looks for; as import names they would shadow the ``models`` of her own project.
"""

from setuptools import find_packages, setup

FOLDERS = {"edgewise": "pipeline"} | {f"edgewise.{leaf}": leaf for leaf in ("models", "targets", "calib_data")}

setup(
    package_dir=FOLDERS,
    packages=[
        name
        for top, folder in FOLDERS.items()
        for name in (top, *(f"{top}.{inner}" for inner in find_packages(folder)))
    ],
)
