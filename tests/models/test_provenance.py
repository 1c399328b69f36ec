"""Where a model came from is told without the places of a machine."""

import pytest

from coda_models.provenance import public_name, without_places


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("bert-base-uncased", "bert-base-uncased"),
        ("nreimers/MiniLM-L6-H384-uncased", "nreimers/MiniLM-L6-H384-uncased"),
        ("", ""),
        ("/home/me/secret/encoder", "encoder"),
        ("/home/me/secret/encoder/", "encoder"),
        ("~/encoder", "encoder"),
        ("./encoder", "encoder"),
        ("../../encoder", "encoder"),
        ("models/of/mine", "mine"),
        ("C:\\Users\\me\\encoder", "encoder"),
        ("\\\\server\\share\\encoder", "encoder"),
    ],
)
def test_hub_names_stay_and_folders_keep_their_own(source: str, name: str):
    assert public_name(source) == name


def test_places_are_left_out_at_any_depth_and_nothing_else_is():
    plain = {
        "_name_or_path": "/root/encoder",
        "name_or_path": "org/encoder",
        "parts": [{"vocab_file": "/root/vocab.txt"}, "/root/kept"],
        "id2label": {"0": "/m/01g317", "1": "/location/country"},
        "token": "/",
        "width": 3,
    }
    assert without_places(plain) == {
        **plain,
        "_name_or_path": "encoder",
        "parts": [{"vocab_file": "vocab.txt"}, "/root/kept"],
    }
