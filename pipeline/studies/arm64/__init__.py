"""Written ONNX files on a 64-bit Arm processor that is emulated: what they answer there, against this machine.

``python -m edgewise.studies.arm64 FILE ... --data D``. Times under emulation say nothing about a board and are marked so.
"""
