"""The files of a bundle, held against the sizes and SHA-256 that its manifest lists."""

import hashlib
import os
from collections.abc import Container
from pathlib import Path, PurePosixPath

from coda_targets.errors import BundleError
from coda_targets.manifest import MANIFEST, FileInfo, Manifest, path_in


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_below(folder: Path, followed: Container[str] = ()) -> list[str]:
    """Every file below a folder but the manifest itself, sorted; links to folders count as files, but for some."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        names = {name: Path(place, name).relative_to(folder).as_posix() for name in (*folders, *files)}
        links = [name for name in folders if Path(place, name).is_symlink() and names[name] not in followed]
        folders[:] = [name for name in folders if name not in links]
        found += [names[name] for name in (*files, *links)]
    return sorted(name for name in found if name != MANIFEST)


def list_files(folder: Path) -> tuple[FileInfo, ...]:
    """What a manifest says of every file below a folder but itself."""
    paths = {name: folder / name for name in files_below(folder)}
    return tuple(FileInfo(name, path.stat().st_size, hash_file(path)) for name, path in paths.items())


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its recorded size and SHA-256.

    Raises:
        BundleError: the first file that is missing, changed or cut off, or that readers may take for a part of it.
    """
    for file in manifest.files:
        check_file(folder, file)
    foreign = next((name for name in unlisted(folder, manifest) if not _of_no_reader(name)), None)
    if foreign is not None:
        raise BundleError(
            f"{folder / foreign} is not in the manifest, so nothing proves it: move it away, or compile the model again"
        )


def unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """What lies in a bundle's folder beside the bundle, sorted."""
    listed = {file.path for file in manifest.files}
    folders = {str(parent) for name in listed for parent in PurePosixPath(name).parents}  # Kubernetes links them
    return [name for name in files_below(folder, folders) if name not in listed]


def _of_no_reader(name: str) -> bool:
    """Whether a file is no part of the bundle: files that hubs, git and Kubernetes add."""
    path = PurePosixPath(name)
    return any(part.startswith(".") for part in path.parts) or path.suffix == ".md" or path.stem == "LICENSE"


def check_file(folder: Path, file: FileInfo) -> None:
    """Compare a file with its recorded size and SHA-256.

    Raises:
        BundleError: it is missing, changed or cut off.
    """
    path = path_in(folder, file.path)
    if not path.is_file():
        raise BundleError(f"{path} is missing: compile the model again")
    size = path.stat().st_size
    if size != file.bytes:
        raise BundleError(f"{path} is damaged: {size} bytes where the manifest says {file.bytes}; compile again")
    if hash_file(path) != file.sha256:
        raise BundleError(f"{path} is damaged: its SHA-256 is not the manifest's; compile the model again")


def version(folder: Path) -> tuple[int, bytes] | None:
    """What tells a manifest from every other one that takes its place: its bytes, and when they were written."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        with (folder / MANIFEST).open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns, file.read()
    except OSError:
        return None


def inside(folder: Path, name: str) -> bool:
    """Whether a file of a folder is one of its own, and no link out of it."""
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a loop of links; RuntimeError before Python 3.13
        return False
