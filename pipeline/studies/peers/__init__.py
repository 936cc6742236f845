"""Our int8 files beside those that the runtimes' own quantizers make of the same network: accuracy and time.

``python -m edgewise.studies.peers`` writes every contender's file, evaluates each over the whole test set in its runtime, times
all of one network interleaved in one run on one thread, and tables them. Each result is kept as it comes; the same
command goes on where it was stopped, and ``--only`` does one kind of work alone (timing wants an idle machine, the rest
does not). The peers' packages are installed by the session ``nox -s peers``, in an environment of its own.
"""
