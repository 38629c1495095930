from __future__ import annotations

import json
from typing import Any

import pytest

from error_examples import documented
from tunesmith.data.columns import assign_columns
from tunesmith.errors import InputError, Problem
from tunesmith.spec import DataSpec
from tunesmith.tasks.chat.conversations import ROLES, SHAPES, read, recognise, shape_of
from tunesmith.tasks.chat.section import ChatSpec

WHERE = {"role": "user", "content": "Where?"}
THERE = {"role": "assistant", "content": "There."}
BRIEF = {"role": "system", "content": "Be brief."}


def read_row(row: dict[str, Any], needs_answer: bool = True, **settings: Any) -> tuple[list[list[tuple[str, str]]], list[Any]]:
    """The conversations of a row as (role, content) pairs, and its faults; columns are found by their names."""
    columns, _ = assign_columns(list(row), [row], DataSpec(train="rows.jsonl"), ROLES)
    conversations, faults = [], []
    for found in read(ChatSpec(**settings), columns, row, needs_answer=needs_answer):
        if isinstance(found, dict):
            assert list(found) == ["messages"]
            messages = json.loads(found["messages"])
            assert all(list(message) == ["role", "content"] for message in messages)
            conversations.append([(message["role"], message["content"]) for message in messages])
        else:
            faults.append(found)
    return conversations, faults


def said(*contents: str) -> list[tuple[str, str]]:
    return [(("user", "assistant")[number % 2], content) for number, content in enumerate(contents)]


def conversation(row: dict[str, Any], **settings: Any) -> list[tuple[str, str]]:
    """The one conversation of a row without faults."""
    conversations, faults = read_row(row, **settings)
    assert not faults
    assert len(conversations) == 1
    return conversations[0]


def fault(row: dict[str, Any], **settings: Any) -> tuple[str, str, str]:
    """(problem, found, fix) of a row that holds nothing but one fault."""
    conversations, faults = read_row(row, **settings)
    assert not conversations
    assert [found[0] for found in faults] == ["data.conversation"]
    _, problem, what, fix = faults[0]
    return problem, what, fix


def node(role: str, text: str, *replies: Any, **more: Any) -> dict[str, Any]:
    return {"message_id": text, "role": role, "text": text, "replies": list(replies), **more}


SHAPED: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "messages": ({"messages": [WHERE, THERE]}, said("Where?", "There.")),
    "sharegpt": ({"conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "There."}]}, said("Where?", "There.")),
    "turns": ({"dialog": ["Where?", "There.", "Why?", "So."]}, said("Where?", "There.", "Why?", "So.")),
    "instances": ({"instruction": "Add.", "instances": [{"input": "1, 2", "output": "3"}]}, said("Add.\n\n1, 2", "3")),
    "tree": ({"prompt": node("prompter", "Where?", node("assistant", "There."))}, said("Where?", "There.")),
    "alpaca": ({"instruction": "Add.", "input": "1, 2", "output": "3"}, said("Add.\n\n1, 2", "3")),
    "question_answer": ({"question": "Where?", "answer": "There."}, said("Where?", "There.")),
    "prompt_completion": ({"prompt": "Where?", "completion": "There."}, said("Where?", "There.")),
}


@pytest.mark.parametrize("shape", SHAPED)
def test_each_shape_is_known_and_read(shape: str) -> None:
    row, expected = SHAPED[shape]
    assert shape_of(list(row), [row]) == shape
    assert conversation(row) == expected
    if shape != "question_answer":
        assert (recognise(list(row), [row]) or "").startswith(SHAPES[shape])


def test_every_shape_is_tried() -> None:
    assert list(SHAPED) == list(SHAPES)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": json.dumps([BRIEF, WHERE, THERE])}, [("system", "Be brief."), *said("Where?", "There.")]),
        ({"messages": [{"role": "developer", "content": "Be brief."}, WHERE, THERE]}, [("system", "Be brief."), *said("Where?", "There.")]),
        ({"messages": [{"role": "User", "content": " a\n"}, THERE]}, said(" a\n", "There.")),
        ({"messages": [{"from": "human", "content": "Where?"}, {"role": "model", "value": "There."}]}, said("Where?", "There.")),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "ere?"}]}, THERE]},
            said("Where?", "There."),
        ),
        ({"prompt": [BRIEF, WHERE], "completion": [THERE]}, [("system", "Be brief."), *said("Where?", "There.")]),
        ({"prompt": [WHERE], "completion": "There."}, said("Where?", "There.")),
        ({"prompt": [WHERE, THERE]}, said("Where?", "There.")),
        ({"prompt": "Where?", "completion": [THERE]}, said("Where?", "There.")),
        ({"input": [BRIEF, WHERE], "ideal": "There."}, [("system", "Be brief."), *said("Where?", "There.")]),
        ({"input": "Where?", "output": "There."}, said("Where?", "There.")),
        ({"instruction": "Add.", "input": "", "output": "3"}, said("Add.", "3")),
        ({"instruction": "Add.", "input": float("nan"), "output": "3"}, said("Add.", "3")),
        ({"instruction": "Why?", "output": "So.", "history": [["Where?", "There."]]}, said("Where?", "There.", "Why?", "So.")),
        ({"system": "Be brief.", "prompt": "Where?", "response": "There."}, [("system", "Be brief."), *said("Where?", "There.")]),
        ({"system": "Be brief.", "messages": [BRIEF, WHERE, THERE]}, [("system", "Be brief."), *said("Where?", "There.")]),
        ({"messages": [WHERE, THERE], "prompt": "Where?", "prompt_id": "1"}, said("Where?", "There.")),
    ],
)
def test_what_is_said_is_kept(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert conversation(row) == expected


def test_metadata_and_the_nulls_of_columnar_files_are_not_read() -> None:
    messages = [
        {**WHERE, "id": 7, "timestamp": "now", "name": None, "tool_calls": None, "from": None, "weight": 0},
        {**THERE, "tool_calls": [], "reasoning_content": "", "weight": 1, "train": True},
    ]
    assert conversation({"messages": messages, "tools": "[]", "images": None, "source": "web"}) == said("Where?", "There.")


def test_columns_of_any_name_can_be_named() -> None:
    row = {"Frage": "Wo?", "Antwort": "Dort."}
    columns = {"prompt": "Frage", "completion": "Antwort"}
    assert shape_of(list(row), [row]) == ""
    assert shape_of(list(row), [row], columns) == "prompt_completion"
    (found,) = read(ChatSpec(), columns, row)
    assert isinstance(found, dict)
    assert [message["content"] for message in json.loads(found["messages"])] == ["Wo?", "Dort."]


@pytest.mark.parametrize(
    ("row", "problem", "found", "fix"),
    [
        (
            {"Frage": "Wo?", "Antwort": 3},
            "which columns hold the conversations",
            "columns Frage (a str), Antwort (a number)",
            "data.columns=",
        ),
        ({"column_1": "Wo?", "column_2": "Dort."}, "which columns hold the conversations", "columns column_1", "data.header=true"),
        ({"prompt": "Wo?", "Antwort": "Dort."}, "which column answers prompt", "Antwort (a str)", "{prompt: ..., completion: ...}"),
    ],
)
def test_columns_of_no_shape_are_one_error_not_one_for_each_row(row: dict[str, Any], problem: str, found: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        read_row(row)
    (told,) = caught.value.problems
    assert told.code == "data.ambiguous_columns"
    assert problem in told.problem
    assert found in told.found
    assert fix in told.fix


def test_the_section_s_system_prompt_goes_where_there_is_none() -> None:
    assert conversation({"messages": [WHERE, THERE]}, system="Be kind.")[0] == ("system", "Be kind.")
    assert conversation({"messages": [BRIEF, WHERE, THERE]}, system="Be kind.")[0] == ("system", "Be brief.")
    assert conversation({"system": "Be brief.", "prompt": "Where?", "answer": "There."}, system="Be kind.")[0] == ("system", "Be brief.")
    assert conversation({"system": "", "prompt": "Where?", "answer": "There."}, system="Be kind.")[0] == ("system", "Be kind.")


def test_one_row_of_instances_is_several_conversations_and_a_bad_one_keeps_none_back() -> None:
    instances = [{"input": "1, 2", "output": "3"}, {"input": "", "output": None}, {"input": "3, 4", "output": "7"}]
    conversations, faults = read_row({"instruction": "Add.", "instances": instances})
    assert conversations == [said("Add.\n\n1, 2", "3"), said("Add.\n\n3, 4", "7")]
    assert [(found[1], found[2]) for found in faults] == [("the prompt has no answer", "instance 2, the prompt 'Add.'")]


@pytest.mark.parametrize(
    ("messages", "problem", "found", "fix"),
    [
        ([THERE], "the assistant speaks first", "turn 1", "put the user's turn before it"),
        ([BRIEF, THERE, WHERE], "the assistant speaks first", "turn 2", "or remove it"),
        ([WHERE, WHERE, THERE], "the user speaks twice in a row", "turn 2", "join the two turns"),
        ([WHERE, THERE, THERE], "the assistant speaks twice in a row", "turn 3", "join the two turns"),
        ([WHERE, THERE, BRIEF], "a system message stands among the turns", "turn 3", "as its first message"),
        ([BRIEF, BRIEF, WHERE, THERE], "the conversation has two system messages", "turn 2", "join or move them"),
        ([BRIEF], "the conversation has no turn", "only a system message", "add turns"),
        ([WHERE, THERE, WHERE], "the user has the last word", "turn 3", "or remove the last turn"),
        ([BRIEF, WHERE], "the assistant says nothing", "turn 2", "add the answer"),
        ([{**WHERE, "role": "usr"}, THERE], "a message has an unknown role", "message 1: role 'usr'", "did you mean user?"),
        ([WHERE, {**THERE, "role": "tool"}], "tool calls are not supported", "message 2: role tool", "into content"),
        ([WHERE, {**THERE, "content": "\n"}], "a turn is empty", r"message 2 (assistant): '\n'", "remove the turn"),
        ([WHERE, {**THERE, "content": 4}], "what is said is not text", "a number, '4'", "as a string"),
        ([WHERE, {**THERE, "weight": 0}], "messages cannot be weighted one by one", "key weight: 0", "task.train_on"),
        ([{**WHERE, "train": True}, THERE], "messages cannot be weighted one by one", "key train: True", "task.train_on"),
        ([WHERE, {**THERE, "from": "gpt"}], "a message says its role twice", "role and from", "keep one"),
        ([WHERE, "There."], "a message is not an object", "message 2: 'There.'", '{"role": "user"'),
    ],
)
def test_a_conversation_out_of_order_is_a_fault(messages: list[Any], problem: str, found: str, fix: str) -> None:
    told = fault({"messages": messages})
    assert told[0] == problem
    assert found in told[1]
    assert fix in told[2]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": "[{'role': 'user'}]"}, "the messages are text, and not JSON"),
        ({"messages": r'[{"role": "user", "content": "\ud83d"}]'}, "the messages are text, and not JSON"),
        ({"messages": '[{"role": "user", "role": "system"}]'}, "the messages are text, and not JSON"),
        ({"messages": "[" * 100_000}, "the messages are text, and not JSON"),
        ({"messages": {"a": 1}}, "the messages are not a list"),
        ({"messages": []}, "the list of messages is empty"),
        ({"messages": [WHERE, THERE], "prompt": "Why?"}, "the row holds conversations in two shapes"),
        ({"prompt": [WHERE], "completion": "There.", "input": "Here."}, "the row holds conversations in two shapes"),
        ({"messages": [WHERE, THERE], "history": [["a", "b"]]}, "the row holds conversations in two shapes"),
        ({"instruction": "Add.", "instances": [{"output": "3"}], "input": "1, 2"}, "the row holds conversations in two shapes"),
        ({"messages": [WHERE, THERE], "tools": [{"name": "find"}]}, "tool calls are not supported"),
        ({"messages": [BRIEF, WHERE, THERE], "system": "Be kind."}, "the conversation has two system prompts"),
        ({"prompt": "Where?", "completion": " "}, "the prompt has no answer"),
        ({"prompt": "Where?", "completion": True}, "what is said is not text"),
        ({"prompt": "Where?", "completion": "There.", "history": ["a"]}, "the history is not a list of pairs"),
    ],
)
def test_a_row_that_fits_no_shape_is_a_fault(row: dict[str, Any], problem: str) -> None:
    assert fault(row)[0] == problem


def test_an_empty_row_is_a_fault_of_its_own() -> None:
    (found,) = read(ChatSpec(), {"messages": "messages"}, {"messages": None})
    assert isinstance(found, tuple)
    assert found[:3] == ("data.conversation", "the row has no prompt", "no column of a conversation")


def test_without_need_of_an_answer_the_user_may_have_the_last_word() -> None:
    assert conversation({"messages": [WHERE]}, needs_answer=False) == said("Where?")
    assert conversation({"messages": [WHERE, THERE, WHERE]}, needs_answer=False) == said("Where?", "There.", "Where?")
    assert conversation({"prompt": "Where?", "answer": ""}, needs_answer=False) == said("Where?")
    assert conversation({"instruction": "Add.", "instances": [{"input": "1"}]}, needs_answer=False) == said("Add.\n\n1")
    assert conversation({"prompt": node("prompter", "Where?")}, needs_answer=False) == said("Where?")
    assert conversation({"prompt": "Where?"}, needs_answer=False) == said("Where?")
    assert fault({"messages": [BRIEF]}, needs_answer=False)[0] == "the conversation has no turn"


TREE = {
    "prompt": node(
        "prompter",
        "q",
        node("assistant", "no rank", rank=None),
        node("assistant", "second", rank=1),
        node(
            "assistant",
            "first",
            node("prompter", "thanks"),
            node("prompter", "why", node("assistant", "so", synthetic=True), node("assistant", "thus")),
            rank=0,
        ),
    )
}


def test_the_best_path_takes_the_lowest_rank_and_ends_with_an_answer() -> None:
    assert conversation(TREE) == said("q", "first")
    assert conversation(TREE, needs_answer=False) == said("q", "first", "thanks")


def test_all_paths_are_those_to_a_last_answer_each_once() -> None:
    conversations, faults = read_row(TREE, paths="all")
    longest = [said("q", "first", "why", "so"), said("q", "first", "why", "thus")]
    assert conversations == [*longest, said("q", "second"), said("q", "no rank")]
    assert not faults
    conversations, _ = read_row(TREE, paths="all", needs_answer=False)
    assert conversations == [said("q", "first", "thanks"), *longest, said("q", "second"), said("q", "no rank")]


def test_two_user_turns_that_nobody_answers_give_one_conversation() -> None:
    tree = {"prompt": node("prompter", "q", node("assistant", "a", node("prompter", "b"), node("prompter", "c")))}
    assert conversation(tree, paths="all") == said("q", "a")


def test_messages_of_a_tree_are_left_out_with_all_under_them() -> None:
    conversations, faults = read_row(TREE, paths="all", leave_out={"synthetic": True, "message_id": "first"})
    assert conversations == [said("q", "second"), said("q", "no rank")]
    reason = 'task.leave_out, message_id: "first"'
    assert [found[:3] for found in faults] == [("data.left_out", reason, "message first, with 4 that follow it")]
    code, problem, found, _ = faults[0]
    command = "tunesmith train rows.jsonl task=chat 'task.leave_out={message_id: first}'     # in rejected.jsonl"
    documented("data.left_out", command, str(Problem(code, problem, "rows.jsonl:1", found)), {})
    conversations, faults = read_row(TREE, paths="all", leave_out={"synthetic": True})
    assert conversations == [said("q", "first", "why", "thus"), said("q", "second"), said("q", "no rank")]
    assert [found[2] for found in faults] == ["message so"]
    conversations, faults = read_row(TREE, leave_out={"role": "assistant"})
    assert not conversations
    assert [found[0] for found in faults] == ["data.left_out"] * 3


def test_a_bad_message_of_a_tree_is_one_fault_and_the_other_paths_stay() -> None:
    bad = node("assistant", " ", node("prompter", "x", node("assistant", "y"), node("assistant", "z")), rank=0, message_id="m")
    conversations, faults = read_row({"prompt": node("prompter", "q", bad, node("assistant", "a"))}, paths="all")
    assert conversations == [said("q", "a")]
    assert [found[:3] for found in faults] == [("data.conversation", "a turn is empty", "message m (assistant): ' '")]


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        (node("prompter", "q"), "the prompt of the tree has no reply"),
        (node("assistant", "a", node("prompter", "q")), "the assistant speaks first"),
        (node("prompter", "q", node("prompter", "p")), "the user replies to the user"),
        (node("prompter", "q", node("assistant", "a", rank="best")), "a rank is not a number"),
        ({"role": "prompter", "text": "q", "replies": "a"}, "the replies are not a list"),
        (node("prompter", "q", "a"), "a message is not an object"),
    ],
)
def test_a_tree_that_is_none_is_a_fault(prompt: dict[str, Any], problem: str) -> None:
    assert fault({"prompt": prompt})[0] == problem


def test_a_tree_may_be_deeper_than_python_s_stack() -> None:
    tree = node("assistant", "end")
    for number in range(4999):
        tree = node(("prompter", "assistant")[number % 2], str(number), tree)
    (found,) = read(ChatSpec(), {"prompt": "prompt"}, {"prompt": tree})
    assert isinstance(found, dict)
    assert len(json.loads(found["messages"])) == 5000


def test_a_list_is_cut_where_a_message_is_left_out() -> None:
    odd = {**WHERE, "flagged": True}
    conversations, faults = read_row({"messages": [BRIEF, WHERE, THERE, odd, THERE]}, leave_out={"flagged": True})
    assert conversations == [[("system", "Be brief."), *said("Where?", "There.")]]
    assert [found[:3] for found in faults] == [("data.left_out", "task.leave_out, flagged: true", "message 4, with 1 that follows it")]
    conversations, _ = read_row({"prompt": [WHERE, THERE, odd], "completion": [THERE]}, leave_out={"flagged": True})
    assert conversations == [said("Where?", "There.")]
    for messages in ([BRIEF, odd, THERE], [WHERE, {**THERE, "flagged": True}]):
        conversations, faults = read_row({"messages": messages}, leave_out={"flagged": True})
        assert not conversations
        assert [found[0] for found in faults] == ["data.left_out"]


@pytest.mark.parametrize(
    ("value", "wanted", "is_left_out"),
    [
        (True, True, True),
        ("True", True, True),
        (1, True, False),
        ("3", 3, True),
        (3.0, 3, True),
        ("web", "web", True),
        (None, "web", False),
    ],
)
def test_a_row_is_left_out_by_value_and_by_its_text_in_a_table(value: Any, wanted: Any, is_left_out: bool) -> None:
    conversations, faults = read_row({"prompt": "Where?", "completion": "There.", "key": value}, leave_out={"key": wanted})
    assert (len(conversations), len(faults)) == ((0, 1) if is_left_out else (1, 0))


@pytest.mark.parametrize(
    "row",
    [
        {"text": "A good film.", "label": "positive"},
        {"question": "Who?", "answer": "yes"},
        {"prompt": "Where?", "completion": "There.", "label": True},
        {"prompt": "Where?", "chosen": "There.", "rejected": "No."},
        {"prompt": "Where?"},
        {"dialogue": "A: Where? B: There.", "summary": "A place."},
        {"dialog": ["Where?", "There."], "label": "polite"},
        {"chat": 3, "user": "ada"},
    ],
)
def test_other_data_does_not_look_like_conversations(row: dict[str, Any]) -> None:
    assert recognise(list(row), [row] * 30) is None


def test_questions_with_answers_in_words_look_like_conversations() -> None:
    rows = [{"question": f"What is {number} and 1?", "answer": f"The sum is {number + 1}."} for number in range(30)]
    assert recognise(["question", "answer"], rows) == "a question and its answer (columns question, answer)"
