"""TensorRT: plans that are built aside from ONNX files and take over from ONNX Runtime while it serves."""
