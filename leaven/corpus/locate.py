"""A corpus wherever it lies: a run, a finished stage, or documents in any form that Leaven reads.

Measuring and mixing take their documents from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from leaven.corpus.read import Input, input_fingerprints, read_documents
from leaven.document import Document
from leaven.errors import UsageError
from leaven.stage import fingerprint, read_manifest, read_stage

SOURCE = "source"  # what the documents that others were written from are called in every table


@dataclass(frozen=True)
class Corpus:
    """Documents of a corpus: finished stages' folders, or files of any kind that Leaven reads.

    Args:
        name: what a table calls it.
    """

    name: str
    folders: tuple[Path, ...] = ()
    files: Input | None = None

    @property
    def place(self) -> str:
        """Where it lies, for a person."""
        return self.files.path if self.files else ", ".join(map(str, self.folders))

    def fingerprint(self) -> str:
        """Changes with the documents."""
        if self.files is not None:
            return fingerprint([self.files.model_dump(mode="json"), input_fingerprints(self.files)])
        manifests = [read_manifest(folder) for folder in self.folders]
        return fingerprint([one and one["fingerprint"] for one in manifests])

    def read(self) -> Iterator[Document]:
        """All documents, one after another.

        Raises:
            UsageError: a file holds something that is no document; the place is named.
        """
        for folder in self.folders:
            yield from read_stage(folder)
        if self.files is not None:
            rejected: list[Document] = []
            for document in read_documents(self.files, rejected.append):
                # Lineage of rows that were not written by Leaven.
                sources = document.metadata.get("original_sources")
                if isinstance(sources, list):
                    document.metadata["sources"] = sources
                yield document
            if rejected:
                first = rejected[0].metadata
                raise UsageError(
                    f"{self.files.path}: {len(rejected)} rows are no documents, the first: "
                    f"{first['reason']}: {first['detail']}; mend or remove them"
                )


def corpus_at(path: str, name: str) -> tuple[Corpus, Corpus | None]:
    """(the corpus at a path, its sources if it is a run's).

    Args:
        path: a run folder (its cleaned rows, or else what its methods wrote), a stage's folder, or documents
            in any form that Leaven reads.
    """
    folder = Path(path)
    if read_manifest(folder) is not None:
        near = (up / "corpus" for up in folder.resolve().parents[:2])
        beside = [one for one in near if one != folder.resolve() and read_manifest(one) is not None]
        return Corpus(name, (folder,)), Corpus(SOURCE, (beside[0],)) if beside else None
    if read_manifest(folder / "corpus") is not None:
        written = sorted(one.parent for one in (folder / "generate").glob("*/manifest.json"))
        cleaned = folder / "clean"
        chosen = (cleaned,) if read_manifest(cleaned) is not None else tuple(written)
        if not chosen:
            raise UsageError(f"{folder} is a run that has written nothing yet; give {folder / 'corpus'}")
        return Corpus(name, chosen), Corpus(SOURCE, (folder / "corpus",))
    if folder.is_dir() and (folder / "parts").is_dir():
        raise UsageError(f"{folder} is an unfinished stage of Leaven; run its plan to the end first")
    return Corpus(name, files=Input(path=path)), None
