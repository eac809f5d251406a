"""From a model to a verified file, in one line: each step takes what the one before returned.

options -> load -> capture -> rewrite -> derive -> type -> lower -> judge -> publish
"""

from __future__ import annotations

from edgesmith.exporters.artifact import Artifact, staging
from edgesmith.exporters.graph.capture import Program, capture, with_free_names
from edgesmith.exporters.graph.state import kept_generators
from edgesmith.exporters.judge import appoint
from edgesmith.exporters.load import load, load_given
from edgesmith.exporters.lowering import Lowering
from edgesmith.exporters.options import ExportOptions, ModelOptions, takes
from edgesmith.exporters.products import derive
from edgesmith.exporters.publish import Export, publish
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.rewrites.rewrite import RewriteReport


@takes(ExportOptions)
def export(options: ExportOptions) -> Artifact:
    """Export a model to a target, check it against PyTorch, and publish it as an artifact.

        export("casvit_xs", "coreml", weights="rcvit_xs.pth")
        export(module, "onnx", inputs=(x,), precision="fp16")

    The options are those of `ModelOptions` and `ExportOptions`.

    Raises:
        BadInput, CheckpointError, BackendMissing, Unsupported, OutputError: see errors.py.
        VerificationFailed: outputs diverge from PyTorch's beyond the threshold; nothing is published. Also with
            `allow_inaccurate` where the program diverges before it is typed: that is no matter of its precision.
    """
    return run(options)


def run(options: ExportOptions) -> Artifact:
    """Make and publish the artifact that is asked for. Raises what `export` does."""
    watch = options.watch
    with staging(options.out, options.folder_name) as folder, kept_generators():
        with watch("load"):
            model = load(options, options.labels)
            given = load_given(options, model)
        with watch("capture"):
            captured = capture(model.module, model.inputs, model.input_names, model.output_names, options.dynamic_batch)
            captured = with_free_names(captured, options.backend.reserved_names)
        with watch("rewrite"):
            rewritten, reports = rewrite(captured, options.costs, streaming=options.streaming)
            product = derive(captured, rewritten, options)
        with watch("verify the program"):
            judge = appoint(options, model, captured, rewritten, given)
            checks = judge.check_programs(captured, rewritten, product)
        lower = Lowering(options, folder, product, model.weights.version)
        with watch(f"type as {options.arithmetic.name}"):
            typed = options.arithmetic.type(product.lowered, lower.task(judge))
        with watch(f"lower to {options.backend.name}"):
            file = lower(typed)
        with watch("verify the file"):
            checks += product.check_file(file, options.backend, judge.evidence, judge.of_file)
        with watch("publish"):
            made = Export(options, model, captured, rewritten, reports, product, typed, file, judge)
            return publish(folder, made, lower.request, checks)


@takes(ModelOptions)
def explain(options: ModelOptions) -> tuple[Program, Program, list[RewriteReport]]:
    """Capture and rewrite a model as `export` would.

    Returns:
        The captured program, the rewritten program, and what every rewrite did.

    Raises:
        BadInput, CheckpointError, Unsupported: see errors.py.
    """
    return capture_and_rewrite(options)


def capture_and_rewrite(options: ModelOptions) -> tuple[Program, Program, list[RewriteReport]]:
    """Return the captured program, the rewritten one, and what every rewrite did. Raises what `explain` does."""
    with kept_generators():
        model = load(options)
        captured = capture(model.module, model.inputs, model.input_names, model.output_names)
        rewritten, reports = rewrite(captured, options.backend.costs)
    return captured, rewritten, reports
