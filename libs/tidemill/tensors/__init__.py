"""Tensors outside of any framework: element types, shapes, bytes, and the blocks that parameters are cut into."""
