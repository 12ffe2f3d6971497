"""A decoder as data, and its weights in the forms of runtimes: what every emitter reads.

    config.json ─ Decoder ─┐
    number formats ────────┴─ program ─┬─ graph of onnxruntime, of TensorRT
                                       ├─ calls of the cuda runtime
                                       └─ bytes, of `awq-edge fit`

Needs neither onnx nor torch.
"""
