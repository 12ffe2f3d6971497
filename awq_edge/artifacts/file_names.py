"""Files that a model, checkpoint or bundle may have beside its weights, by name."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    # of vision-language models: how images become inputs
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
# What the quantizer says about a checkpoint; a bundle keeps it.
RECIPE_FILE = "recipe.json"  # of a bundle: the resolved recipe
QUANTIZATION_REPORT = "quantization_report.json"
REPORT_FILES = (QUANTIZATION_REPORT, "quantization_report.html")
CALIBRATION_FILE = "self_calibration.jsonl"  # of a checkpoint: samples that the model wrote itself
