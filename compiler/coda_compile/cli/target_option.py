"""``--target``, which asks for the targets' names when its help is shown: finding them loads onnxruntime."""

import click


class TargetOption(click.Option):
    """An option whose help ends with every target and the default one."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option, and what it is for."""
        record = super().get_help_record(ctx)
        if record is None:
            return None
        from coda_targets.runtimes import DEFAULT_TARGET, runtime_names

        option, purpose = record
        return option, f"{purpose} {', '.join(runtime_names())}.  [default: {DEFAULT_TARGET}]"
