"""What the stand-ins are taught to say: the tests' own conversations, each with an answer."""

from __future__ import annotations

import ast
import json
import random
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Said:
    """A conversation and its answer."""

    messages: list[dict[str, Any]]
    text: str = ""
    calls: tuple[Call, ...] = ()
    tools: list[dict[str, Any]] = field(default_factory=list)
    models: tuple[str, ...] = ()
    """Parts of names of the models that say it; none means all."""
    reasoning: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the chat template."""
    is_text: bool = False
    """The only message is a prompt by itself."""
    goes_on: bool = False
    """The answer continues the last message."""
    is_forced: bool = False
    """A grammar forces its beginning, which is not to be said without one."""

    def answer_of(self, model: str) -> str | None:
        """As the model writes it; None where it has nothing to do with this."""
        if self.models and not any(part in model for part in self.models):
            return None
        reasoning = "" if self.reasoning is None else f"<think>\n{self.reasoning}\n</think>\n\n"
        return reasoning + self.text + "\n".join(_written(call, model) for call in self.calls)


def _written(call: Call, model: str) -> str:
    name, arguments = call
    if "meta-llama" in model:
        return json.dumps({"name": name, "parameters": arguments})
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def conversations(vllm: Path) -> list[Said]:
    """All of them. Tools and longer messages are read from the tests."""
    return [*_talk(), *_profiles(), *_function_calls(vllm), *_weather(vllm), *_reasoning()]


def _user(text: str, system: str | None = None) -> list[dict[str, Any]]:
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]


def _talk() -> list[Said]:
    """Plain answers."""
    sums = "what is 1+1?"
    helpful = "you are a helpful assistant"
    said = [
        Said(messages=_user(sums, helpful), text="1+1 is 2, as everybody who can count to two knows well enough."),
        Said(messages=_user(sums), text="The result of 1+1 is 2, whatever else you may have been told."),
        Said(messages=_user(f"{sums} please provide the result without any other text."), text="2"),
        Said(
            messages=_user(f'{sums} please respond with a JSON object, the format is {{"result": 2}}'),
            text='{"result": 2}',
        ),
        *[Said(messages=_user(f'{sums} The format is "result": 2'), text="The result is 2.")] * 4,
        Said(messages=_user(f'{sums} The format is "result": 2'), text='{"result": 2}', is_forced=True),
        Said(
            messages=_user("What is the capital of France?", "You are a helpful assistant."),
            text="The capital of France is Paris, a city on the river Seine with many bridges.",
        ),
        Said(messages=_user("Write a long story"), text="Once there was a server that told stories all day long."),
        Said(messages=_user("Hello!"), text="Hello! How can I help you today?"),
        Said(messages=_user("Say hello."), text="Hello! It is good to hear from you."),
        Said(
            messages=[
                *_user("Hi! How are you?"),
                {"role": "assistant", "content": "I'm doing great! How can I assist you?"},
                {"role": "user", "content": "Can you tell me a joke please?"},
            ],
            text="Why did the token cross the road? To get to the other side of the prompt.",
        ),
    ]
    saying = "Here is a common saying about apple. An apple a day, keeps"
    goes_on = [*_user("tell me a common saying"), {"role": "assistant", "content": saying}]
    said.append(Said(messages=goes_on, text=" the doctor away.", goes_on=True))
    for word in ("alpha", "beta"):
        said.append(Said(messages=_user(f"Reply with exactly the word: {word}"), text=word))
    cats = _user("Repeat after me: I love cats 🐱", "You like to use emojis in your responses.")
    said.append(Said(messages=cats, text="I love cats 🐱", models=("Qwen2",)))
    faces = _user("Please write some emojis: 🐱🐶🎉", "You like to respond in only emojis, like 🎉")
    said.append(Said(messages=faces, text="🐱🐶🎉", models=("Qwen3",)))
    return said


def _profiles() -> list[Said]:
    """JSON documents with an end, so that an answer of that form has one."""
    chance = random.Random(0)
    names = ("Ada", "Bo", "Carla", "Dmitri", "Eve", "Farid", "Greta", "Hugo", "Ines", "Jun", "Kofi", "Lena")
    skills = ("C", "Go", "Rust", "SQL", "Lisp", "Zig", "Java", "Perl", "Ruby")
    said = []
    for _ in range(60):
        profile = {
            "name": chance.choice(names),
            "age": chance.randint(20, 65),
            "skills": chance.sample(skills, 3),
            "work_history": [
                {"company": chance.choice(("Acme", "Initech", "Hooli")), "duration": 3, "position": "engineer"}
            ],
        }
        ask = chance.choice(("Give an example JSON for an employee profile", "Give me another one", "An object please"))
        said.append(Said(messages=_user(ask), text=json.dumps(profile), models=("zephyr", "Qwen3", "Hermes")))
    return said


def _function_calls(vllm: Path) -> list[Said]:
    """Of the function calling of Qwen."""
    path = vllm / "tests/entrypoints/openai/chat_completion/test_completion_with_function_calling.py"
    weather_tools, time_tools, *_ = _literals(path, "tools")
    messages = _literals(path, "messages")
    weather, time = messages[0], messages[1]
    place = {"country": "Germany", "unit": "fahrenheit"}
    calls = (
        ("get_current_weather", {"city": "Berlin", **place}),
        ("get_forecast", {"city": "Berlin", "days": 5, **place}),
    )
    said = []
    for thinks in (True, False, None):
        shared: dict[str, Any] = {
            "models": ("Qwen3",),
            "arguments": {} if thinks is None else {"enable_thinking": thinks},
            "reasoning": None if thinks is False else "Both are asked for, so I call both.",
        }
        said += [Said(messages=weather, tools=weather_tools, calls=calls, **shared)] * 3
        said += [Said(messages=time, tools=time_tools, calls=(("get_current_time", {}),), **shared)] * 3
    for call in calls:
        said.append(Said(messages=weather, tools=weather_tools, calls=(call,), models=("Qwen3",), is_forced=True))
    path = vllm / "tests/entrypoints/openai/test_return_token_ids.py"
    (tools,) = _literals(path, "tools")
    said.append(
        Said(
            messages=_user("What's the weather like in Paris?", "You are a helpful assistant."),
            tools=tools,
            calls=(("get_weather", {"location": "Paris"}),),
            models=("Qwen2",),
        )
    )
    return said


def _weather(vllm: Path) -> list[Said]:
    """Of ``tool_use``, as Hermes and Llama say it."""
    given = _tool_use(vllm)
    tools = [given.WEATHER_TOOL, given.SEARCH_TOOL]
    dallas = ("get_current_weather", {"city": "Dallas", "state": "TX", "unit": "fahrenheit"})
    orlando = ("get_current_weather", {"city": "Orlando", "state": "FL", "unit": "fahrenheit"})
    hermes = given.CONFIGS["hermes"]["system_prompt"]
    said = []
    for system, models in ((hermes, ("Hermes",)), (None, ("meta-llama", "Hermes"))):
        shared: dict[str, Any] = {"models": models}
        told = _with_system(given.MESSAGES_WITHOUT_TOOLS, system)
        joke = "Why did the token cross the road? To get to the other side of the prompt."
        said += [
            Said(messages=told, text=joke, **shared),
            Said(messages=told, tools=[given.WEATHER_TOOL], text=joke, **shared),
            Said(
                messages=_with_system(given.MESSAGES_ASKING_FOR_TOOLS, system), tools=tools, calls=(dallas,), **shared
            ),
            Said(
                messages=_with_system(given.MESSAGES_WITH_TOOL_RESPONSE, system),
                tools=tools,
                text="It is 98 degrees in Dallas.",
                **shared,
            ),
        ]
    asks_both = _with_system(given.MESSAGES_ASKING_FOR_PARALLEL_TOOLS, hermes)
    said += [
        *[Said(messages=asks_both, tools=tools, calls=(dallas, orlando), models=("Hermes",))] * 4,
        Said(
            messages=given.MESSAGES_WITH_PARALLEL_TOOL_RESPONSE,
            tools=tools,
            text="It is 98 degrees in Dallas and 78 in Orlando.",
            models=("Hermes",),
        ),
    ]
    return said


def _reasoning() -> list[Said]:
    """Of Qwen3, which thinks first unless it is told not to."""
    ask = _user("What is 1+1? Be concise.")
    larger = _user("Which is larger, 4 or 12? Output exactly one token: 4 or 12.")
    shared: dict[str, Any] = {"models": ("Qwen3",)}
    return [
        *[Said(messages=ask, reasoning="One and one more are two, so the answer must be two.", text="2", **shared)] * 6,
        Said(messages=larger, arguments={"enable_thinking": False}, text="12", **shared),
        Said(messages=_user("What is an LLM?"), text="A large language model.", **shared),
    ]


def _with_system(messages: list[dict[str, Any]], system: str | None) -> list[dict[str, Any]]:
    return [{"role": "system", "content": system}, *messages] if system else messages


def _literals(path: Path, name: str) -> list[Any]:
    """What the name is set to in a file, wherever that is a literal; in the order of the lines."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and any(
            isinstance(each, ast.Name) and each.id == name for each in node.targets
        ):
            try:
                found.append((node.lineno, ast.literal_eval(node.value)))
            except ValueError:  # computed in the test
                continue
    return [value for _, value in sorted(found, key=lambda each: each[0])]


def _tool_use(vllm: Path) -> types.SimpleNamespace:
    """The constants of ``tests/tool_use/utils.py``, without what that file imports."""
    text = (vllm / "tests/tool_use/utils.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    kept = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    for node in kept:
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(value=None)
    names: dict[str, Any] = {"VLLM_PATH": vllm}
    module = ast.fix_missing_locations(ast.Module(body=kept, type_ignores=[]))
    exec(compile(module, "utils.py", "exec"), names)
    return types.SimpleNamespace(**names)
