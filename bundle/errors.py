"""Every error a user can meet, drawn once.

FieldmarkError                what was wrong, where, what to do; the CLI prints one sentence and exits non-zero
├── InputError                something handed in cannot be used
│   ├── ImageError            one image: unreadable, too large, too small, animated        -> an error row, or exit 1
│   │   └── ImageUnread       its file cannot be read now: another time it may be
│   ├── DatasetError          a dataset folder: missing file, dangling index, empty class
│   └── OptionError           a value on the command line: unknown preset, eps out of range
├── BundleError               an artifact on disk that must not be used
│   ├── BundleMissing         no bundle, or a file of it, at this path
│   ├── BundleCorrupt         a checksum, a size or a path does not match the manifest
│   ├── BundleUnsupported     a schema or a feature that this version does not know
│   └── BundleUntrusted       not signed, or not by the key that is required
├── CheckpointError           a training run that cannot be resumed or exported
├── TrainingError             training cannot go on (a loss that is not finite)
├── DetectorError             features or scores that no detector can be fitted on
├── ExportError               a graph that cannot be exported, or does not equal its source
├── EngineError               an engine that cannot be built, or must not be used
├── RepositoryError           a model repository that is damaged, or does not fit what is to be added
├── ServerError               the server could not start, or died
├── EndpointError             the endpoint cannot be reached, is not ready, or serves another bundle
├── QuarantineError           a quarantine that cannot be written or read, or an entry of it that is damaged
├── DiskFull                  no space left; nothing half-written stays behind
├── ScoringError              offline scoring cannot go on (disk full, output of another bundle)
├── ReviewError               a review that cannot go on; what was decided stays decided
│   └── ImageGone             the source no longer has an image, or never let it be read
├── Interrupted               a person stopped it; says how to go on                              -> exit 130
└── MissingExtra              an optional dependency is not installed; names the extra
"""

import unicodedata
from pathlib import Path


def printable(text: str) -> str:
    """One line for a terminal: control characters and undecodable bytes, which others may have put in, are escaped."""
    return "".join(
        ascii(character)[1:-1] if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") else character
        for character in text
    )


def first_line(problem: BaseException) -> str:
    """What a library's error says first, or its kind where it says nothing."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0].strip()


class FieldmarkError(Exception):
    """`what` is the problem and where it is; `hint` is what to do about it. Both are sentences without a traceback."""

    exit_code = 1

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what.rstrip('.')}. {self.hint}" if self.hint else self.what

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.hint)


def _rebuild(kind: type[FieldmarkError], what: str, hint: str) -> FieldmarkError:
    """Errors cross process borders (data-loading workers), so they must survive pickling."""
    return kind(what, hint=hint)


class InputError(FieldmarkError):
    """Something handed in cannot be used."""


class ImageError(InputError):
    """One image cannot be decoded within the limits of the image spec."""


class ImageUnread(ImageError):
    """The file of an image cannot be read: it is not there, or its disk or its permissions say no. They may change."""


class DatasetError(InputError):
    """A dataset folder is not what its format promises."""


class OptionError(InputError):
    """A value on the command line is not one of the allowed ones."""

    exit_code = 2


class BundleError(FieldmarkError):
    """An artifact on disk that must not be used."""


class BundleMissing(BundleError):
    """There is no bundle, or one of its files is absent."""


class BundleCorrupt(BundleError):
    """A checksum, a size or a path does not match the manifest."""


class BundleUnsupported(BundleError):
    """The bundle asks for something that this version does not know."""


class BundleUntrusted(BundleError):
    """The bundle is not signed, or not by the key that is required."""


class CheckpointError(FieldmarkError):
    """A training run that cannot be resumed or exported."""


class TrainingError(FieldmarkError):
    """Training cannot go on."""


class DetectorError(FieldmarkError):
    """Features or scores that no detector can be fitted on."""


class ExportError(FieldmarkError):
    """A graph that cannot be exported, or does not equal its source."""


class EngineError(FieldmarkError):
    """An engine that cannot be built, or must not be used."""


class RepositoryError(FieldmarkError):
    """A model repository that is damaged, or does not fit what is to be added; what it served before, it serves."""


class ServerError(FieldmarkError):
    """The server could not start, or died."""


class EndpointError(FieldmarkError):
    """The endpoint cannot be reached, is not ready, or serves another bundle."""


class RequestRefused(EndpointError):
    """A request to fieldmark.v1 gets a status instead of an answer: raised by the gateway, and again by its client.

    `reason` is one of docs/gateway.md, empty where none was sent; `retry_after` the seconds after which it is worth
    another try, None where it never is; `field` the request's field that is wrong.
    """

    def __init__(
        self, what: str, *, hint: str = "", reason: str = "", retry_after: float | None = None, field: str = ""
    ) -> None:
        super().__init__(what, hint=hint)
        self.reason, self.retry_after, self.field = reason, retry_after, field

    def __reduce__(self) -> tuple[object, ...]:
        return _refused, (self.what, self.hint, self.reason, self.retry_after, self.field)


def _refused(what: str, hint: str, reason: str, retry_after: float | None, field: str) -> RequestRefused:
    return RequestRefused(what, hint=hint, reason=reason, retry_after=retry_after, field=field)


class QuarantineError(FieldmarkError):
    """A quarantine that cannot be written or read, or an entry of it that is damaged."""


class DiskFull(FieldmarkError):
    """No space left; nothing half-written stays behind."""


class ScoringError(FieldmarkError):
    """Offline scoring cannot go on; what was written stays valid."""


class ReviewError(FieldmarkError):
    """A review's source or its database cannot be used; what was decided stays decided."""


class ImageGone(ReviewError):
    """The source no longer has an image (it was deleted by age), or does not let it be read."""


class Terminated(SystemExit):
    """A supervisor's SIGTERM, on its way out through every `finally`."""


class Interrupted(FieldmarkError):
    """A person stopped it, or a supervisor; the hint says how to go on."""

    exit_code = 130

    @classmethod
    def by(cls, stop: BaseException, what: str, *, hint: str) -> "Interrupted":
        """Of Ctrl-C or of Terminated, whose exit code it keeps."""
        problem = cls(what, hint=hint)
        if isinstance(stop, Terminated) and isinstance(stop.code, int):
            problem.exit_code = stop.code
        return problem


class MissingExtra(FieldmarkError):
    """An optional dependency is not installed."""

    exit_code = 3

    @classmethod
    def named(cls, extra: str, verb: str, cause: ImportError) -> "MissingExtra":
        """Of a package that cannot be imported. A signal in the middle of an import may come out of a library as an
        ImportError; it is raised again as what it is.
        """
        stop: BaseException | None = cause
        while stop is not None:
            if isinstance(stop, KeyboardInterrupt | Terminated):
                raise stop from None
            stop = stop.__cause__ or stop.__context__
        if _ours(cause.name or ""):
            return cls(f"{verb}: {cause.name} is missing from what is installed", hint="Install it again.")
        return cls(
            f"{verb} needs the '{extra}' extra ({cause.name or cause} is not installed)",
            hint=f"Install it with: pip install '.[{extra}]'",
        )


def _ours(name: str) -> bool:
    """Whether a module is a file of one of our own rooms: no extra brings that."""
    room, dot, _ = name.partition(".")
    return bool(dot) and (Path(__file__).parents[1] / room / "__init__.py").is_file()
