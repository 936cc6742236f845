"""The journey of every architecture at its published size, from PyTorch to each target's file, measured and tabled.

``python -m edgewise.studies.architectures`` builds each network with weights of its own initialisation, folds it, quantizes it after
calibration, writes the float and the int8 file of every installed target, runs them on photographs, and times them
against the float ONNX file. Every result is kept as it comes; the same command goes on where it was stopped.
"""
