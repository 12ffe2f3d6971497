"""Small tasks of lm-evaluation-harness, one of each kind, and a folder that holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QUESTIONS = [
    {"question": "Once upon a", "choices": ["time", "girl", "river bank"], "answer": 0},
    {"question": "She went to the", "choices": ["old man", "river", "boat"], "answer": 1},
    {"question": "Good", "choices": ["bread", "boat", "morning"], "answer": 2},
    {"question": "a little girl", "choices": ["named", "met"], "answer": 0},
]
CHOICE = """
task: local_choice
tag: local_all
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
fewshot_split: test
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.5}
"""
ANSWER = """
task: local_answer
tag: local_all
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{target}}"
generation_kwargs: {until: ["."], max_gen_toks: 10}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 2}
"""
ROLLING = """
task: local_rolling
tag: local_all
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
metadata: {version: 3}
"""
GROUP = """
group: local_group
task: [local_choice, local_choice_again]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 0}
"""


class TaskFolder:
    """A folder of task files, with their data beside them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, text: str, documents: list[dict[str, Any]], **keys: Any) -> str:
        """Write a task with its data; JSON is YAML too. Returns its name."""
        name = str(keys.get("task") or text.partition("task: ")[2].partition("\n")[0])
        data = self.path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(document) + "\n" for document in documents))
        splits = {split: str(data) for split in ("test", "train")}
        keys = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": splits, "cache_dir": str(self.path / "cache")},
            "test_split": "test",
            **keys,
        }
        lines = "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())
        (self.path / f"{name}.yaml").write_text(text + lines)
        return name
