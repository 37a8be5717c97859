"""ONNX Runtime: a graph as an engine. It executes every ONNX file, and stands behind the other engines."""
