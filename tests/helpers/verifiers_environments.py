"""Environments of the verifiers package, as modules that a test puts into a folder."""

from __future__ import annotations

from pathlib import Path

ECHO = """
import verifiers as vf
from datasets import Dataset

def rows(first, count):
    numbers = range(first, first + count)
    return Dataset.from_list([{"question": f"say {number}", "answer": str(number)} for number in numbers])

def right(completion, answer, **_):
    return float(completion[-1].content.strip() == answer)

async def num_characters(completion):
    return float(len(completion[-1].content))

def load_environment(count=12, weight=0.25, **settings):
    rubric = vf.Rubric(funcs=[right, num_characters], weights=[1.0, weight])
    shots = [{"role": "user", "content": "say 7"}, {"role": "assistant", "content": "7"}]
    data = {"dataset": rows(0, count), "eval_dataset": rows(100, 4)}
    return vf.SingleTurnEnv(**data, system_prompt="do as told", few_shot=shots, rubric=rubric, **settings)
"""
GAME = '''
import verifiers as vf
from datasets import Dataset

class Game(vf.MultiTurnEnv):
    """Higher or lower, until the number is said."""

    async def setup_state(self, state):
        state["num_wrong"] = 0
        state["log"] = []
        return state

    async def env_response(self, messages, state, **_):
        guess = messages[-1].content.strip()
        if guess == "fail":
            raise vf.InfraError("the table fell over")
        if guess == "break":
            raise KeyError("lost")
        if guess == "rewrite":
            messages[0].content = "another beginning"
        state["num_wrong"] += 1
        if not guess.isdecimal():
            return [vf.UserMessage(content="a number")]
        return [vf.UserMessage(content="higher" if int(guess) < int(state["answer"]) else "lower")]

    @vf.stop
    async def found(self, state):
        trajectory = state["trajectory"]
        return bool(trajectory) and trajectory[-1]["completion"][-1].content.strip() == state["answer"]

    @vf.cleanup
    async def note(self, state):
        with open("cleaned", "a") as file:
            file.write(f"{state.get('stop_condition')}\\n")

def found(state, answer):
    return float(state["completion"][-1].content.strip() == answer)

def num_wrong(state):
    return state["num_wrong"]

def load_environment(max_turns=4, **settings):
    data = Dataset.from_list([{"question": f"guess {number}", "answer": str(number)} for number in range(4, 8)])
    rubric = vf.Rubric(funcs=[found, num_wrong], weights=[1.0, -0.125])
    return Game(dataset=data, rubric=rubric, max_turns=max_turns, **settings)
'''
CALCULATOR = '''
import verifiers as vf
from datasets import Dataset

class Calculator(vf.StatefulToolEnv):
    async def setup_state(self, state):
        state["calls"] = 0
        return await super().setup_state(state) or state

    def update_tool_args(self, tool_name, tool_args, messages, state, **_):
        state["calls"] += 1
        return {**tool_args, "caller": state["calls"]}

def add(a: int, b: int, caller: int) -> str:
    """Add two numbers."""
    return f"{a + b} ({caller})"

def right(completion, answer):
    return float(answer in completion[-1].content)

def load_environment(**settings):
    data = Dataset.from_list([{"question": "20+22", "answer": "42"}, {"question": "1+2", "answer": "3"}])
    environment = Calculator(dataset=data, rubric=vf.Rubric(funcs=[right]), max_turns=3, **settings)
    environment.add_tool(add, args_to_skip=["caller"])
    return environment
'''
REFUSED = '''
import verifiers as vf
from datasets import Dataset

def best(completions, **_):
    return [0.0] * len(completions)

def right(completion):
    return 1.0

def tool(x: int) -> int:
    """A tool."""
    return x

def data(**columns):
    return Dataset.from_list([{"question": "a", "answer": "b", **columns}] * 2)

class Asks(vf.SingleTurnEnv):
    async def setup_state(self, state):
        state["prompt"] = [vf.UserMessage(content="something else")]
        return state

def load_environment(kind, **settings):
    rubric = vf.Rubric(funcs=[right])
    if kind == "group":
        return vf.SingleTurnEnv(dataset=data(), rubric=vf.Rubric(funcs=[best]))
    if kind == "unscored":
        return vf.SingleTurnEnv(dataset=data(), rubric=rubric, score_rollouts=False)
    if kind == "evaluation":
        return vf.SingleTurnEnv(eval_dataset=data(), rubric=rubric)
    if kind == "tools":
        info = {"tool_defs": [{"name": "t", "description": "", "parameters": {}}]}
        return vf.SingleTurnEnv(dataset=data(info=info), rubric=rubric)
    if kind == "asks":
        return Asks(dataset=data(), rubric=rubric)
    if kind == "many":
        inner = vf.ToolEnv(tools=[tool], dataset=data(), rubric=rubric)
        return vf.EnvGroup([inner, vf.SingleTurnEnv(dataset=data(), rubric=rubric)], env_names=["inner", "outer"])
    raise LookupError(kind)
'''
MODULES = {"vf_echo": ECHO, "vf_game": GAME, "vf_calculator": CALCULATOR, "vf_refused": REFUSED}


def write_modules(folder: Path) -> None:
    """Put all of them into ``folder``."""
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
