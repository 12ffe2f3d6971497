"""`evaluate_tasks` on small task files: real models, real definitions, no hub."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from awq_edge.errors import ConfigError
from awq_edge.evaluate import tasks as tasks_module
from awq_edge.evaluate.tasks import MetricResult, TaskResult, TasksReport, evaluate_tasks
from awq_edge.runtime.tokenizer import Tokenizer
from tests.tiny_models import TEXT, save_tokenizer

from .fakes import ScriptedTaskModel
from .task_folder import ANSWER, CHOICE, GROUP, QUESTIONS, ROLLING, TaskFolder

lm_eval = pytest.importorskip("lm_eval", reason="needs the [eval] extra")
torch = pytest.importorskip("torch", reason="needs the [host] extra")

# float32 likelihoods of some tokens, in another order.
SAME_ARITHMETIC = 1e-5
OWN_TASKS = Path(lm_eval.__file__).parent / "tasks"


@pytest.fixture
def folder(tmp_path: Path) -> TaskFolder:
    (tmp_path / "tasks").mkdir()
    return TaskFolder(tmp_path / "tasks")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> TaskFolder:
    """One task of each kind, and a group."""
    folder = TaskFolder(tmp_path_factory.mktemp("tasks"))
    documents = [{**q, "target": q["choices"][0], "text": TEXT[: 170 * 3]} for q in QUESTIONS]
    folder.add(CHOICE, documents)
    folder.add(ANSWER, documents)
    folder.add(ROLLING, documents)
    return folder


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ScriptedTaskModel]:
    """Make the model that is evaluated, whatever the target, one that writes what it is told."""

    def use(answer: Callable[[str], str] = lambda prompt: "") -> ScriptedTaskModel:
        directory = save_tokenizer(tmp_path / "tokenizer", chat=True, merges=False)
        model = ScriptedTaskModel(directory, answer=answer, context=20_000)
        monkeypatch.setattr(tasks_module, "open_task_model", lambda *_, **__: model)
        return model

    return use


def metric(result: TaskResult, name: str, filter_name: str = "none") -> MetricResult:
    (found,) = (m for m in result.metrics if (m.metric, m.filter) == (name, filter_name))
    return found


def run(target: object, folder: TaskFolder, *names: str, **options: Any) -> TasksReport:
    return evaluate_tasks(str(target), names, include_path=folder.path, **options)


@pytest.fixture(scope="module")
def reports(tiny_llama: Path, tiny_bundle: Path, local: TaskFolder) -> dict[str, TasksReport]:
    """All three tasks on a bundle, and on its model in batches."""
    return {
        "bundle": run(tiny_bundle, local, "local_all"),
        "model": run(tiny_llama, local, "local_all", batch_size=5),
    }


def test_a_bundle_and_its_model_have_the_same_results(reports: dict[str, TasksReport]) -> None:
    bundle, model = reports["bundle"], reports["model"]
    assert {r.name for r in bundle.results} == {"local_choice", "local_answer", "local_rolling"}
    for mine, theirs in zip(bundle.results, model.results, strict=True):
        assert mine.model_copy(update={"metrics": ()}) == theirs.model_copy(update={"metrics": ()})
        for one, other in zip(mine.metrics, theirs.metrics, strict=True):
            assert one.value == pytest.approx(other.value, rel=SAME_ARITHMETIC)
    assert (bundle.model.kind, model.model.kind) == ("bundle", "model")
    assert "torch" not in bundle.versions and "torch" in model.versions
    assert {"lm-eval", "datasets"} <= set(bundle.versions)
    assert (bundle.batch_size, model.batch_size, bundle.context) == (1, 5, 256)


def test_the_results_are_those_of_transformers(
    reports: dict[str, TasksReport], tiny_llama: Path
) -> None:
    """Accuracies and perplexity by a loop over one sequence after the other."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = Tokenizer(tiny_llama)

    def score(before: list[int], behind: list[int]) -> float:
        with torch.no_grad():
            logits = model(torch.tensor([before + behind])).logits[0, len(before) - 1 : -1]
        rows = torch.log_softmax(logits.double(), -1)
        return float(rows.gather(1, torch.tensor(behind)[:, None]).sum())

    right = {"acc": 0, "acc_norm": 0}
    for item in QUESTIONS:
        before = tokenizer.encode(str(item["question"]))
        scores = []
        for choice in item["choices"]:
            whole = tokenizer.encode(f"{item['question']} {choice}")
            scores.append(score(before, whole[len(before) :]))
        normed = [s / len(c) for s, c in zip(scores, item["choices"], strict=True)]
        right["acc"] += scores.index(max(scores)) == item["answer"]
        right["acc_norm"] += normed.index(max(normed)) == item["answer"]
    results = {result.name: result for result in reports["bundle"].results}
    for name, count in right.items():
        assert metric(results["local_choice"], name).value == count / len(QUESTIONS)
    text = TEXT[: 170 * 3]
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.bos_token_id is not None and len(ids) < 256
    nll = -score([tokenizer.bos_token_id], ids)
    rolling = results["local_rolling"]
    assert metric(rolling, "bits_per_byte").value == pytest.approx(
        nll / len(text.encode()) / math.log(2), rel=SAME_ARITHMETIC
    )
    assert metric(rolling, "bits_per_byte").higher_is_better is False
    assert metric(rolling, "bits_per_byte").standard_error is None


def test_what_a_result_says(reports: dict[str, TasksReport]) -> None:
    report = reports["bundle"]
    choice = next(result for result in report.results if result.name == "local_choice")
    assert (choice.kind, choice.version, choice.n_shot) == ("task", "1.5", 0)
    assert (choice.samples, choice.samples_available) == (4, 4)
    accuracy = metric(choice, "acc")
    assert accuracy.value is not None and accuracy.higher_is_better is True
    share = accuracy.value
    assert accuracy.standard_error == pytest.approx(math.sqrt(share * (1 - share) / 3))
    assert (report.limit, report.num_fewshot, report.chat_template) == (None, None, False)
    assert report.truncated_requests == 0 and report.warnings == ()
    assert TasksReport.model_validate_json(report.model_dump_json()) == report


def test_limit_and_examples(scripted: Any, local: TaskFolder) -> None:
    model = scripted(answer=lambda prompt: f" {prompt.rsplit(' ', 1)[-1]}. And more")
    report = run("any", local, "local_answer", limit=2, num_fewshot=2)
    assert len(model.requests) == 2
    prompt = model.tokenizer.decode(model.requests[0].prompt_ids)
    assert prompt.count("\n\n") == 2 and prompt.endswith("\n\nOnce upon a")
    (result,) = report.results
    assert (result.n_shot, result.samples, result.samples_available) == (2, 2, 4)
    assert (report.limit, report.num_fewshot) == (2, 2)
    again = run("any", local, "local_answer", limit=2, num_fewshot=2)
    prompts = [model.tokenizer.decode(request.prompt_ids) for request in model.requests]
    assert prompts[:2] == prompts[2:] and again.results == report.results
    run("any", local, "local_answer", limit=2, num_fewshot=2, seed=7)
    assert model.tokenizer.decode(model.requests[4].prompt_ids) != prompts[0]


def test_examples_that_a_task_forbids(scripted: Any, folder: TaskFolder) -> None:
    scripted()
    folder.add(ANSWER, [{"question": "a", "target": "b"}], num_fewshot=0)
    report = run("any", folder, "local_answer", num_fewshot=3)
    assert report.results[0].n_shot == 0
    assert "local_answer: its definition forbids examples" in report.warnings[0]


def test_groups_have_the_mean_of_their_tasks(scripted: Any, folder: TaskFolder) -> None:
    model = scripted()
    model._log_likelihood = lambda asked: -float(len(asked.tokens))  # the shortest choice wins
    folder.add(CHOICE, QUESTIONS[:1])
    folder.add(CHOICE, QUESTIONS[1:], task="local_choice_again")
    (folder.path / "group.yaml").write_text(GROUP)
    found = {result.name: result for result in run("any", folder, "local_group").results}
    assert [found[n].kind for n in ("local_group", "local_choice")] == ["group", "task"]
    # "time" of time, girl: a tie that the first wins; "boat" and "bread" are shorter than the
    # answers; "met" is shorter than "named".
    assert metric(found["local_choice"], "acc").value == 1
    assert metric(found["local_choice_again"], "acc").value == 0
    assert metric(found["local_group"], "acc").value == 1 / 4
    assert (found["local_group"].samples, found["local_group"].samples_available) == (4, None)


def test_gsm8k_as_the_harness_defines_it(scripted: Any, folder: TaskFolder) -> None:
    """Its own file, with local questions: five examples, stop strings, both extractions."""
    documents = [
        {"question": f"What is {n} + 1?", "answer": f"One more.\n#### {n + 1}"} for n in range(9)
    ]
    include = str(OWN_TASKS / "gsm8k" / "gsm8k.yaml")
    name = folder.add("", documents, include=include, task="local_gsm8k", dataset_name=None)

    def answer(prompt: str) -> str:
        """The last question answered: with the mark, without it, or wrong, by turns."""
        n = int(prompt.rpartition("What is ")[2].partition(" ")[0])
        text = (f" It is.\n#### {n + 1}", f" It is {n + 1}.", " It is.\n#### -1")[n % 3]
        return text + "\n\nQuestion: What is 500 + 1?\nAnswer: #### 501"

    model = scripted(answer)
    (result,) = run("any", folder, name).results
    assert (result.n_shot, result.samples, result.version) == (5, 9, "3.0")
    assert metric(result, "exact_match", "strict-match").value == pytest.approx(3 / 9)
    assert metric(result, "exact_match", "flexible-extract").value == pytest.approx(6 / 9)
    prompt = model.tokenizer.decode(model.requests[0].prompt_ids)
    assert prompt.count("Question: ") == 6 and prompt.endswith("Answer:")
    assert all(r.max_new_tokens == 256 and "Question:" in r.stop for r in model.requests)


CODE_EVAL = """
import os
import subprocess
import sys
import datasets
import evaluate
class CodeEval(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.Sequence(datasets.Value("string")),
                    "references": datasets.Value("string")}
        return evaluate.MetricInfo(description="", citation="",
                                   features=datasets.Features(features))
    def _compute(self, predictions, references, k):
        if os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
            raise ValueError("code execution is not allowed")
        passed = [subprocess.run([sys.executable, "-c", "\\n".join([one[0], test])],
                                 capture_output=True).returncode == 0
                  for one, test in zip(predictions, references)]
        return {"pass@1": sum(passed) / len(passed)}, {}
"""


def test_mbpp_as_the_harness_defines_it(
    scripted: Any, folder: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own file and code, with local problems and a small code_eval in the hub's place."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code_eval").mkdir()
    (tmp_path / "code_eval" / "code_eval.py").write_text(CODE_EVAL)
    tests = [f"assert double({n}) == {2 * n}" for n in range(3)]
    documents = [{"text": "Double.", "test_list": tests}, {"text": "Half.", "test_list": tests}]
    include = str(OWN_TASKS / "mbpp" / "mbpp.yaml")
    name = folder.add("", documents, include=include, task="local_mbpp", dataset_name=None)
    model = scripted(lambda prompt: "def double(x):\n    return x * 2\n[DONE]\nraise SystemExit(3)")
    with pytest.raises(ConfigError, match=r"local_mbpp: would run the code .*--allow-code-exec"):
        run("any", folder, name)
    assert model.requests == []
    (result,) = run("any", folder, name, allow_code_execution=True).results
    assert metric(result, "pass_at_1").value == 1
    assert model.tokenizer.decode(model.requests[0].prompt_ids).count("[BEGIN]") == 4
    model._answer = lambda prompt: "def double(x):\n    return x\n"
    (result,) = run("any", folder, name, allow_code_execution=True).results
    assert metric(result, "pass_at_1").value == 0
    assert os.environ.get("HF_ALLOW_CODE_EVAL") is None


def test_code_is_refused_before_anything_of_the_task_runs(
    scripted: Any, folder: TaskFolder
) -> None:
    """Alone, in a tag and in a group; the task's own Python is not even imported."""
    scripted()
    (folder.path / "poison.py").write_text("raise SystemExit('it ran')\ndef metric(): ...\n")
    text = ANSWER.replace("metric: exact_match", "metric: !function poison.metric")
    folder.add(text, [{"question": "a", "target": "b"}], unsafe_code=True)
    (folder.path / "group.yaml").write_text("group: local_group\ntask: [local_answer]\n")
    folder.add(ANSWER, [{"question": "a", "target": "b"}], task="local_safe", tag="local_none")
    (folder.path / "inline.yaml").write_text(
        "group: local_inline\ntask: [{task: local_safe, unsafe_code: true}]\n"
    )
    for name in ("local_answer", "local_all", "local_group", "local_inline"):
        with pytest.raises(ConfigError, match="would run the code that the model writes"):
            run("any", folder, name)
    assert run("any", folder, "local_safe").results


def test_chat_template(scripted: Any, local: TaskFolder) -> None:
    model = scripted(answer=lambda prompt: "x")
    report = run("any", local, "local_answer", limit=1, apply_chat_template=True, num_fewshot=1)
    assert report.chat_template
    ids = list(model.requests[0].prompt_ids)
    prompt = model.tokenizer.decode(ids, skip_special_tokens=False)
    assert prompt.endswith("<|im_start|>user\nOnce upon a<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.count("<|im_start|>assistant") == 2


def test_prompts_that_were_cut_are_counted(tiny_bundle: Path, local: TaskFolder) -> None:
    report = run(tiny_bundle, local, "local_answer", context=12)
    assert (report.truncated_requests, report.context) == (4, 12)


def test_the_harness_prints_nothing(
    tiny_bundle: Path, local: TaskFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, int, str]] = []
    run(tiny_bundle, local, "local_choice", progress=lambda *told: seen.append(told))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert seen[-1] == (11, 11, "likelihoods")


def test_warnings_of_the_harness_are_in_the_report(scripted: Any, folder: TaskFolder) -> None:
    scripted()
    text = ANSWER.replace(", higher_is_better: true", "")
    folder.add(text, [{"question": "a", "target": "b"}])
    (warning,) = run("any", folder, "local_answer").warnings
    assert "higher_is_better is not" in warning


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("local_choice",), {"limit": 0}, "--limit 0: must be 1 or more"),
        (("local_choice",), {"num_fewshot": -1}, "--num-fewshot -1: must be 0 or more"),
        (("local_choice",), {"seed": -1}, "--seed -1: must be 0 or more"),
        ((" ", ""), {}, "--tasks: names no task"),
        (("local_choice",), {"include_path": Path("none")}, "--include-path none: is not a dir"),
    ],
)
def test_impossible_choices(
    local: TaskFolder, names: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_tasks("demo", names, **{"include_path": local.path, **options})


def test_a_pipe_among_the_task_files(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    os.mkfifo(tmp_path / "more" / "pipe.yaml")
    with pytest.raises(ConfigError, match=r"pipe\.yaml is a pipe, not a plain file"):
        evaluate_tasks("demo", ["local_choice"], include_path=tmp_path)


def test_tasks_that_cannot_be_loaded_or_run(scripted: Any, folder: TaskFolder) -> None:
    scripted()
    name = folder.add(ANSWER, [{"question": "a", "target": "b"}])
    (folder.path / f"{name}.jsonl").unlink()
    with pytest.raises(ConfigError, match="--tasks local_answer: cannot be loaded: FileNotFound"):
        run("any", folder, name)
    folder.add(ANSWER.replace("{{question}}", "{{ 1 / 0 }}"), [{"question": "a", "target": "b"}])
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        run("any", folder, name)


@pytest.mark.slow
def test_a_task_that_nobody_knows(local: TaskFolder) -> None:
    """The harness's own list is read: thousands of files."""
    with pytest.raises(ConfigError, match="--tasks gsm9k: lm-eval has no such task; did you mean"):
        run("demo", local, "gsm9k")
