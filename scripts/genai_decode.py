"""Decode with onnxruntime-genai on request. Run by bench_cpu.py in genai's own environment.

    python genai_decode.py MODEL PROMPT_TOKENS THREADS

Prints a line of JSON when the model is loaded and the prompt has run. Then every line of standard
input is a number of steps, answered by a line of JSON: seconds of each, CPU seconds of all.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time

import onnxruntime_genai as og

CONTEXT = 2048


def main() -> None:
    model_path, *numbers = sys.argv[1:]
    prompt_tokens, threads = (int(number) for number in numbers)
    config = og.Config(model_path)
    config.overlay(
        json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}})
    )
    start = time.perf_counter()
    model = og.Model(config)
    load = time.perf_counter() - start
    parameters = og.GeneratorParams(model)
    # min_length keeps the end-of-text token out: random weights choose it now and then.
    parameters.set_search_options(do_sample=False, max_length=CONTEXT, min_length=CONTEXT)
    generator = og.Generator(model, parameters)
    start = time.perf_counter()
    generator.append_tokens([3 + i for i in range(prompt_tokens)])
    generator.generate_next_token()  # chooses from the prompt's logits
    packages = ("onnxruntime", "onnxruntime-genai")
    loaded = {
        "load": load,
        "prefill": time.perf_counter() - start,
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
    print(json.dumps(loaded), flush=True)
    for line in sys.stdin:
        seconds, cpu = [], time.process_time()
        for _ in range(int(line)):
            start = time.perf_counter()
            generator.generate_next_token()  # runs the graph on the token before, and chooses
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds, "cpu": time.process_time() - cpu}), flush=True)


if __name__ == "__main__":
    main()
