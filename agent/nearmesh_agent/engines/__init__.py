"""The runtimes that execute a model version; the rest of the agent knows them through `base` alone.

`factory` chooses among them for each package: `onnx` executes graphs, `tensorrt` plans made from graphs, `pipeline`
graphs and functions in a row.
"""
