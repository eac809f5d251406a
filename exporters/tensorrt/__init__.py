"""TensorRT engines and kits, without TensorRT."""
