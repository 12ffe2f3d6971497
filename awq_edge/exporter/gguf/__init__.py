"""Export into one GGUF file, which llama.cpp and ollama load; there is no runtime and no bundle.

    Checkpoint ─ checks ─ tensors, metadata, vocabulary ─ file

`file.py` is the stage. What llama.cpp has of an architecture is a record of it
(`awq_edge.model.archs.llama_cpp`). Needs the [gguf] extra.
"""
