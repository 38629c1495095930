"""The command line. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

Arguments = argparse.Namespace


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error is said."""

    def error(self, message: str) -> NoReturn:
        from tunesmith.errors import InputError

        raise InputError("usage.argument", message, fix=f"see `{self.prog} --help`")


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = _Parser(prog="tunesmith", description="Fine-tune Hugging Face models from one strict spec, and prove the result.")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a Python file that registers tasks, methods or accelerations"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def add(name: str, run: Callable[[Arguments], None], summary: str, **options: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary, **options)
        command.set_defaults(run_command=run)
        return command

    command = add("init", _init, "print a commented spec for some data")
    command.add_argument("data", metavar="DATA", help="a data file or folder")
    command.add_argument("--task", metavar="T", help="a name of `tunesmith tasks`")
    command.add_argument("--model", metavar="M", help="an alias, a folder or a hub id")
    command.add_argument("--out", metavar="FILE", help="write the spec here instead of to standard output")

    command = add("check", _check, "show everything that can be known before training")
    _add_source(command)
    command.add_argument("--no-measure", action="store_true", help="leave out the timed steps and the estimates")

    command = add("train", _train, "train, evaluate and prove")
    _add_source(command)
    command.add_argument("--run", metavar="DIR", help="the run directory (default: runs/DATE-TIME-TASK)")

    command = add("resume", _resume, "go on with a run that was stopped")
    command.add_argument("run", metavar="RUN")
    command.add_argument("overrides", metavar="key=value", nargs="*", help="another length or rate, e.g. train.epochs=5")
    command.add_argument("--accept-changes", action="store_true", help="go on although the spec or the environment is not what it was")
    _add_json(command)

    _add_uses(add)
    _add_json(add("tasks", _tasks, "list the tasks"))
    _add_json(add("methods", _methods, "list the methods"))
    _add_json(add("accelerations", _accelerations, "list what makes a run faster; `speed.off` names those to do without"))
    command = add("models", _models, "list the models known by a short name, or `models pull NAME`")
    command.add_argument("action", nargs="?", choices=["pull"], help="fetch a model into the local cache")
    command.add_argument("name", nargs="?", metavar="NAME")
    _add_json(command)
    add("schema", _schema, "print the JSON schema of the spec, for editors")
    return parser


def _add_uses(add: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands that take a finished run."""
    command = add("evaluate", _evaluate, "evaluate a run's model")
    command.add_argument("run", metavar="RUN")
    command.add_argument(
        "--data", metavar="FILE", action="append", help="a labelled file; may be repeated (default: the run's test or else validation set)"
    )
    command.add_argument("overrides", metavar="key=value", nargs="*", help="settings of writing, e.g. task.generation.num_beams=4")
    command.add_argument("--compare", action="store_true", help="evaluate the model that training started from as well")
    _add_json(command)

    command = add("predict", _predict, "predict for a file, standard input or a text")
    command.add_argument("run", metavar="RUN")
    command.add_argument("file", metavar="FILE", nargs="?", help="a data file, or - for one text, or JSON object, a line")
    command.add_argument("--text", "--question", action="append", default=[], metavar="TEXT", help="a text or question; may be repeated")
    command.add_argument("--pair", action="append", default=[], metavar="TEXT", help="the second text of a pair; one for each --text")
    command.add_argument(
        "--context", action="append", default=[], metavar="TEXT|FILE", help="where the answer is: one for each --question, or one for all"
    )
    command.add_argument("--out", metavar="FILE", help="write predictions here: .jsonl or .csv")
    _add_json(command)

    command = add("chat", _chat, "talk with a run's model in the terminal")
    command.add_argument("run", metavar="RUN")
    command.add_argument("overrides", metavar="key=value", nargs="*", help="settings of writing, e.g. temperature=0.7 max_new_tokens=64")
    command.add_argument("--base", action="store_true", help="talk with the model that training started from")
    command.add_argument("--compare", action="store_true", help="show the answers of both, side by side")

    command = add("merge", _merge, "fold adapters into the base model, and prove the result equal")
    command.add_argument("run", metavar="RUN")
    command.add_argument("--out", metavar="DIR", required=True, help="a new folder for the merged model")
    command.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of the weights written (default: fp32)")
    _add_json(command)


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object on standard output, and nothing else there")


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="SPEC|DATA", help="a spec (.yaml, .json) or a data file")
    command.add_argument("overrides", metavar="key=value", nargs="*", help="dotted settings, e.g. train.epochs=2")
    command.add_argument("--no-cache", action="store_true", help="encode anew, and keep nothing")
    _add_json(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 done, 1 the run failed, 2 the spec, the data or the command line is wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    wants_json = "--json" in arguments
    from tunesmith.errors import RunError, TunesmithError

    try:
        parsed = _parse(arguments)
        if parsed.version:
            from tunesmith import __version__

            print(f"tunesmith {__version__}")
            return 0
        if parsed.command is None:
            build_parser().print_help()
            return 2
        _prepare_process(parsed.plugin)
        parsed.run_command(parsed)
    except TunesmithError as error:
        return _report(error, wants_json)
    except KeyboardInterrupt:
        return _report(RunError("run.interrupted", "interrupted", fix="start again"), wants_json)
    except MemoryError:
        fix = "lower train.max_tokens_per_micro_batch or task.max_length"
        return _report(RunError("run.out_of_memory", "the machine ran out of memory", fix=fix), wants_json)
    except BrokenPipeError:
        # The reader of our output has gone; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _report_unexpected(error, wants_json)
    return 0


def _parse(arguments: list[str]) -> Arguments:
    """The arguments of a command; overrides may also follow options."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest and hasattr(parsed, "overrides") and all("=" in word and not word.startswith("-") for word in rest):
        parsed.overrides = [*parsed.overrides, *rest]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return parsed


def _prepare_process(plugins: Iterable[str]) -> None:
    """Quiets the libraries, since tunesmith says itself what matters, and loads plugins."""
    for name, value in (
        ("TOKENIZERS_PARALLELISM", "true"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ):
        os.environ.setdefault(name, value)
    import gc
    import logging
    import warnings

    gc.set_threshold(700, 10, 100)  # full collections are a tenth of the time of importing thousands of modules
    warnings.filterwarnings("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if plugins:
        from tunesmith.registry import load_plugin

        for plugin in plugins:
            load_plugin(plugin)


def _report(error: Any, wants_json: bool) -> int:
    print(error, file=sys.stderr)
    if wants_json:
        print(json.dumps({"error": error.as_json()}, ensure_ascii=False, default=str))
    return int(error.exit_code)


def _report_unexpected(error: Exception, wants_json: bool) -> int:
    """What tunesmith did not foresee: no traceback on the screen, but one on disk to report."""
    import tempfile
    import traceback

    from tunesmith.errors import RunError

    with tempfile.NamedTemporaryFile("w", prefix="tunesmith-traceback-", suffix=".txt", delete=False, encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    message = " ".join(str(error).split())[:300]
    return _report(
        RunError(
            "run.failed",
            "something went wrong that tunesmith did not foresee",
            found=f"{type(error).__name__}: {message}",
            fix=f"please report it with {file.name}",
        ),
        wants_json,
    )


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, default=str))


def _init(arguments: Arguments) -> None:
    from tunesmith.verbs.init import write_spec

    text = write_spec(arguments.data, arguments.task, arguments.model)
    if arguments.out:
        _write_new(Path(arguments.out), text)
        print(f"wrote {arguments.out}", file=sys.stderr)
    else:
        print(text, end="")


def _write_new(path: Path, text: str) -> None:
    from tunesmith.errors import InputError

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(
            "usage.output_exists", "the file cannot be written", where=str(path), found=str(error), fix="give another --out"
        ) from error


def _check(arguments: Arguments) -> None:
    from tunesmith.verbs.check import check, report_lines

    report = check(arguments.source, arguments.overrides, use_cache=not arguments.no_cache, measure=not arguments.no_measure)
    if arguments.json:
        _print_json(report)
    else:
        print("\n".join(report_lines(report)))


def _train(arguments: Arguments) -> None:
    from tunesmith.pipeline import train

    _print_run(train(arguments.source, arguments.overrides, run=arguments.run, use_cache=not arguments.no_cache), arguments.json)


def _resume(arguments: Arguments) -> None:
    from tunesmith.pipeline import resume

    _print_run(resume(arguments.run, arguments.overrides, accept_changes=arguments.accept_changes), arguments.json)


def _print_run(run: Any, as_json: bool) -> None:
    if os.environ.get("RANK", "0") != "0":  # of several processes the first speaks
        return
    from tunesmith.verbs.show import metric_lines

    result = run.result
    if as_json:
        _print_json({"metrics": run.metrics, **result, "run": str(run.path)})
        return
    for split in ("validation", "test"):
        found = run.directory.read_json(f"eval/{split}.json")
        if found is not None:
            print("\n".join(metric_lines(split, found)))
    proof = run.directory.read_json("proof.json")
    print(f"proof: reloaded in a fresh process, {proof['num_rows']} rows, largest logit difference {proof['largest_logit_difference']:.2g}")
    print(f"model: {run.directory.model}")


def _evaluate(arguments: Arguments) -> None:
    from tunesmith.verbs.run import open_run
    from tunesmith.verbs.show import confusion_lines, metric_lines, sample_lines

    run, files = open_run(arguments.run), arguments.data
    result = run.evaluate(
        files[0] if files is not None and len(files) == 1 else files, overrides=arguments.overrides, compare=arguments.compare
    )
    if arguments.json:
        _print_json({**result, "train_seconds": run.train_seconds, "run": str(run.path)})
        return
    lines = [*metric_lines(result["split"], result), *confusion_lines(result)]
    if "base" in result:
        lines += metric_lines(f"{result['split']}, the model before training", result["base"])
    print("\n".join([*lines, *sample_lines(result)]))


def _predict(arguments: Arguments) -> None:
    from tunesmith.verbs.predict import predict_to, read_contexts
    from tunesmith.verbs.run import open_run
    from tunesmith.verbs.show import prediction_lines

    pairs = [*arguments.pair, *read_contexts(arguments.context, len(arguments.text))]
    predictions = predict_to(open_run(arguments.run), arguments.file, arguments.text, pairs, arguments.out)
    if arguments.json:
        _print_json(predictions if arguments.out else {"predictions": list(predictions["predictions"])})
    elif not arguments.out:
        for row in predictions["predictions"]:
            print("\n".join(prediction_lines([row])))
    else:
        print(f"wrote {predictions['rows']:,} predictions to {predictions['out']}", file=sys.stderr)


def _chat(arguments: Arguments) -> None:
    from tunesmith.verbs.chat import chat
    from tunesmith.verbs.run import open_run

    chat(open_run(arguments.run), arguments.base, arguments.compare, arguments.overrides)


def _merge(arguments: Arguments) -> None:
    from tunesmith.verbs.merge import merge
    from tunesmith.verbs.run import open_run

    proof = merge(open_run(arguments.run), arguments.out, dtype=arguments.dtype)
    if arguments.json:
        _print_json({"proof": proof, "out": arguments.out})
        return
    print(f"merged model: {arguments.out}")
    more = [f"largest logit difference {proof['largest_logit_difference']:.2g}"]
    if "mean_kl_divergence" in proof:
        more.append(f"top-1 agreement {proof['top_1_agreement']:.1%}, KL divergence {proof['mean_kl_divergence']:.2g}")
    print(f"proof: reloaded in a fresh process, {proof['num_rows']} {proof['rows']} rows, {', '.join(more)}")


def _tasks(arguments: Arguments) -> None:
    from tunesmith.registry import TASKS

    _print_names([(task.name, task.summary) for task in TASKS], arguments.json)


def _methods(arguments: Arguments) -> None:
    from tunesmith.registry import METHODS

    _print_names([(method.name, method.summary) for method in METHODS], arguments.json)


def _accelerations(arguments: Arguments) -> None:
    from tunesmith.registry import ACCELERATIONS

    _print_names([(acceleration.name, acceleration.summary) for acceleration in ACCELERATIONS], arguments.json)


def _models(arguments: Arguments) -> None:
    from tunesmith.verbs.models import list_models, pull_model

    if arguments.action == "pull":
        found = pull_model(arguments.name)
        _print_json(found) if arguments.json else print(f"{found['name']}: {found['path']} ({found['origin']})")
    else:
        _print_names(list_models(), arguments.json)


def _print_names(names: list[tuple[str, str]], as_json: bool) -> None:
    if as_json:
        _print_json(dict(names))
        return
    width = max(len(name) for name, _ in names)
    for name, summary in names:
        print(f"{name:<{width}}  {summary}")


def _schema(arguments: Arguments) -> None:
    from tunesmith.schema import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
