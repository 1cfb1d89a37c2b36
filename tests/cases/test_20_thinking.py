"""The template decides what an answer begins with: an empty thought, a closed one, or none.

Reported of others: hiyouga/LlamaFactory#9092, modelscope/ms-swift#4939.
"""

from pathlib import Path
from typing import Any

import pytest
from chat_families import family_policy, family_tokenizer
from tiny_tokenizers import prompt

from apo_bench.judging.judge_protocol import JudgeContext, Question
from apo_bench.judging.local_judge import LocalJudge
from apo_bench.models.tokenize import ChatFormat

QUESTION = prompt("how do I wash it")


def read(name: str, **kwargs: Any) -> tuple[str, str]:
    """What a policy reads, after its last header, and what it is trained to answer."""
    chat = ChatFormat(family_tokenizer(name), template_kwargs=kwargs)
    start, target = chat.encode_prompt(QUESTION, 999).ids, chat.encode_response(QUESTION, "by hand", 999)
    decode = chat.tokenizer.decode
    return decode(start).rpartition("ssistant")[2], decode(target)


def test_the_target_is_what_the_template_writes_after_the_generation_prompt() -> None:
    empty = "<think>\n\n</think>\n\n"
    assert read("qwen3") == ("\n", f"{empty}by hand<|im_end|>")
    assert read("qwen3", enable_thinking=False) == (f"\n{empty}", "by hand<|im_end|>")
    assert read("r1") == ("|><think>\n", "\n</think>\n\nby hand</s>")  # it drops thoughts, and leaves one open
    assert read("chatml") == ("\n", "by hand<|im_end|>")


def test_a_reward_model_reads_what_the_template_writes() -> None:
    chat = ChatFormat(family_tokenizer("qwen3"))
    scored = chat.tokenizer.decode(chat.encode_scored(QUESTION, "by hand", 999).ids)
    assert scored.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nby hand<|im_end|>")
    chat = ChatFormat(family_tokenizer("r1"))
    assert chat.tokenizer.decode(chat.encode_scored(QUESTION, "<think>hm</think>by hand", 999).ids).endswith("<|Assistant|>by hand</s>")


@pytest.mark.parametrize("name", ["qwen3", "r1"])
def test_a_local_judge_answers_outside_a_thought(name: str, tmp_path: Path) -> None:
    judge = LocalJudge(str(family_policy(name, tmp_path)), template="overall.v1", max_tokens=2048)
    question = Question(QUESTION, "by hand", "not at all")
    chat = judge.chat(family_tokenizer(name))
    text = chat.tokenizer.decode(judge.encode(chat, question))
    assert text.rpartition("ssistant")[2].count("<think>") == text.rpartition("ssistant")[2].count("</think>") == 1
    [(_, verdict)] = judge.open(JudgeContext()).verdicts([question])
    assert verdict.prompt_tokens == len(judge.encode(chat, question))
