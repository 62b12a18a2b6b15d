"""What the API answers is what `PhotoCaptioner` says of the same photos, alone and in company."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from openapi_spec_validator import validate

from capjax.captioning.generator import Caption
from capjax.captioning.loaded_model import LoadedModel, load_model
from capjax.captioning.photos import PhotoCaptioner
from capjax.decoding.settings import DecoderSettings
from tests.serving.running import GOLDEN, PHOTOS, Server, check_problem, picture, serving

CONTENTS = [photo.read_bytes() for photo in PHOTOS]
SEARCHES = {
    "own": {},
    "beam": {"beam_size": "3", "num_captions": "2"},
    "sample": {"method": "sample", "temperature": "1.5", "seed": "7", "num_captions": "3"},
    "words": {"method": "beam", "must_contain": "circle|box", "must_not_contain": "blue,yellow"},
    "diverse": {"num_groups": "2", "beam_size": "4", "num_captions": "4"},
}


def expected(model: LoadedModel, **fields: str) -> list[Caption]:
    """Caption the photos without a server."""
    numbers = {name: float(text) if "." in text else int(text) for name, text in fields.items() if text[0].isdigit()}
    settings = model.search.updated({**fields, **numbers})
    captions = list(PhotoCaptioner([model])(PHOTOS, settings))
    assert all(isinstance(caption, Caption) for caption in captions)
    return captions


def check(entry: dict, caption: Caption) -> None:
    assert entry["caption"] == caption.text
    assert entry["log_prob"] == pytest.approx(caption.log_prob, abs=1e-4)
    assert [other["caption"] for other in entry["alternatives"]] == [text for text, _ in caption.alternatives]
    scores = [score for _, score in caption.alternatives]
    assert [other["log_prob"] for other in entry["alternatives"]] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("search", SEARCHES)
def test_photos_alone_and_together_are_captioned_as_without_a_server(
    server: Server, model: LoadedModel, search: str
) -> None:
    wanted = expected(model, **SEARCHES[search])
    together = server.post(*CONTENTS, **SEARCHES[search]).json()
    assert together["model"]["sha256"].startswith("6c2630b9c9916b42")
    assert DecoderSettings.from_dict(together["search"]).num_captions == int(SEARCHES[search].get("num_captions", 1))
    assert [entry["file"] for entry in together["captions"]] == [f"{i}.png" for i in range(len(PHOTOS))]
    for entry, caption in zip(together["captions"], wanted, strict=True):
        check(entry, caption)
    for content, caption in list(zip(CONTENTS, wanted, strict=True))[:3]:
        (entry,) = server.post(content, **SEARCHES[search]).json()["captions"]
        check(entry, caption)


def test_requests_that_arrive_together_share_batches_and_get_their_own_captions(serve, model: LoadedModel) -> None:
    server = serve(max_requests_per_client=64, batch_wait_ms=50.0)
    wanted = {search: expected(model, **SEARCHES[search]) for search in ("own", "beam")}
    jobs = [(search, i) for _ in range(3) for search in wanted for i in range(len(PHOTOS))]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda job: server.post(CONTENTS[job[1]], **SEARCHES[job[0]]), jobs))
    for (search, i), answer in zip(jobs, answers, strict=True):
        check(answer.json()["captions"][0], wanted[search][i])
    counts = metrics(server)
    assert counts["capjax_batch_images_sum"] == len(jobs) == counts['capjax_images_total{outcome="captioned"}']
    assert counts["capjax_batch_images_count"] < len(jobs)
    assert counts['capjax_requests_total{path="/v1/captions",status="200"}'] == len(jobs)
    assert counts['capjax_request_seconds_count{path="/v1/captions"}'] == len(jobs)
    assert counts["capjax_queue_images"] == 0


def metrics(server: Server) -> dict[str, float]:
    """Read the counts."""
    lines = server.client.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_an_image_may_be_the_whole_body(server: Server, model: LoadedModel) -> None:
    wanted = expected(model, beam_size="3")
    answer = server.client.post(
        "/v1/captions", params={"beam_size": 3}, content=CONTENTS[1], headers={"Content-Type": "image/jpeg"}
    )
    (entry,) = answer.json()["captions"]
    assert entry.pop("file") == "image"
    check(entry, wanted[1])  # a PNG, whatever the header says


def test_a_bad_image_among_good_ones_has_an_entry_of_its_own(server: Server, model: LoadedModel) -> None:
    answer = server.post(CONTENTS[0], b"no image", CONTENTS[2][:100], CONTENTS[1])
    assert answer.status_code == 200
    first, no_image, cut, last = answer.json()["captions"]
    wanted = expected(model)
    check(first, wanted[0])
    check(last, wanted[1])
    assert no_image["error"]["status"] == 415 and no_image["file"] == "1.png" and "caption" not in no_image
    assert cut["error"]["status"] == 422 and "damaged" in cut["error"]["detail"]


def test_images_of_which_none_is_good_are_a_problem_with_all_reasons(server: Server) -> None:
    answer = server.post(b"no image", b"nor this")
    check_problem(answer, 415, "none of the 2 can be used")
    assert [entry["error"]["status"] for entry in answer.json()["captions"]] == [415, 415]
    check_problem(server.post(b"no image", CONTENTS[0][:100]), 422, "none of the 2 can be used")


def test_explanations_tell_every_word_and_where_it_came_from(server: Server) -> None:
    answer = server.post(CONTENTS[0], explain="true").json()["captions"][0]
    explanation = answer["explanation"]
    words = explanation["words"]
    assert " ".join(word["text"] for word in words) == answer["caption"] + " (end)"
    assert np.log([word["probability"] for word in words]).sum() == pytest.approx(answer["log_prob"], abs=1e-4)
    for word in words:
        probabilities = [likely["probability"] for likely in word["likely"]]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1 + 1e-5
        heat = np.asarray(word["heat"])
        assert heat.ndim == 2 and heat.shape[0] == heat.shape[1] and heat.min() >= 0 and heat.max() <= 1
    assert explanation["heat_method"] and explanation["crop"] == "center"
    assert "explanation" not in server.post(CONTENTS[0], explain="false").json()["captions"][0]


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"beam_sze": "3"}, "did you mean beam_size?"),
        ({"explainn": "1"}, "did you mean explain?"),
        ({"beam_size": "11"}, "beam_size of at most 10"),
        ({"beam_size": "0"}, "beam_size lies in 1.."),
        ({"beam_size": "many"}, "beam_size to be an integer, got 'many'"),
        ({"beam_size": "9" * 1900}, "beam_size to be an integer"),
        ({"num_captions": "11", "beam_size": "10"}, "num_captions of at most 10"),
        ({"max_length": "41"}, "max_length of at most 40"),
        ({"temperature": "nan"}, "temperature to be a finite number, got 'nan'"),
        ({"temperature": "1e999"}, "finite number"),
        ({"temperature": "0"}, "temperature lies in 0.001..1000"),
        ({"allow_unk": "perhaps"}, "allow_unk to be true or false, got 'perhaps'"),
        ({"explain": "perhaps"}, "explain to be true or false"),
        ({"method": "bean"}, "did you mean beam?"),
        ({"method": "greedy", "beam_size": "4"}, "beam_size has no meaning for method=greedy"),
        ({"must_contain": "circel"}, "did you mean circle"),
        ({"must_contain": "<end>"}, "unknown word"),
        ({"must_contain": "|".join(["box"] * 40)}, "at most 32 words"),
        ({"must_contain": "x" * 3000}, "2,000"),
        ({"seed": "-1"}, "seed lies in"),
    ],
)
def test_searches_that_cannot_be_are_refused_in_one_line(server: Server, fields: dict[str, str], detail: str) -> None:
    status = 400 if len("".join(fields.values())) > 2000 else 422
    check_problem(server.post(CONTENTS[0], **fields), status, detail)
    check_problem(
        server.client.post(
            "/v1/captions", params=fields, content=CONTENTS[0], headers={"Content-Type": "image/png"}
        ),
        422,
        detail,
    )  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": "0.001"},
        {"temperature": "1000"},
        {"length_penalty": "-10", "beam_size": "2"},
        {"no_repeat_ngram_size": "9999"},
        {"top_k": "2147483647"},
        {"max_length": "1"},
        {"num_groups": "2", "beam_size": "4", "diversity_strength": "1e300"},
        {"must_contain": "circle,box,red,blue", "max_length": "4", "num_captions": "3"},
    ],
)
def test_searches_at_the_edge_are_answered_in_json_proper(server: Server, fields: dict[str, str]) -> None:
    answer = server.post(CONTENTS[0], **fields)
    assert answer.status_code == 200, answer.text
    assert "NaN" not in answer.text and "Infinity" not in answer.text


def test_other_searches_come_and_go_and_the_servers_own_stays(serve, model: LoadedModel) -> None:
    server = serve(max_searches=2, max_batch=1)
    wanted = {size: expected(model, beam_size=size) for size in "2345"}
    for size in "23452345":
        check(server.post(CONTENTS[3], beam_size=size).json()["captions"][0], wanted[size][3])
    check(server.post(CONTENTS[3]).json()["captions"][0], expected(model)[3])


def test_the_model_is_described_as_it_is(server: Server, model: LoadedModel) -> None:
    told = server.client.get("/v1/model").json()
    assert told["decoder"] == model.config.decoder.name and told["vocabulary_size"] == len(model.vocabulary)
    assert told["image_size"] == 75 and told["crop"] == "center" and told["scores"]["step"] == 160
    assert DecoderSettings.from_dict(told["search"]) == model.search
    assert told["limits"]["max_images"] == 16
    assert {field["name"]: field.get("most") for field in told["fields"]}["beam_size"] == 10


def test_answers_name_the_weights_that_serve_whatever_replaced_them(tmp_path) -> None:
    shutil.copytree(GOLDEN / "model", tmp_path / "model")
    model = load_model(str(tmp_path / "model"))
    header = json.loads((tmp_path / "model" / "model.json").read_text())
    (tmp_path / "model" / "model.json").write_text(json.dumps(header | {"weights_sha256": "of a later step"}))
    with serving(model) as running:
        assert running.client.get("/v1/model").json()["model"]["sha256"] == header["weights_sha256"]


def test_the_description_of_the_api_is_valid_and_complete(server: Server) -> None:
    document = server.client.get("/openapi.json").json()
    validate(document)
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        allowed = server.client.request("PROPFIND", path)
        check_problem(allowed, 405, "expected another method")
        methods = {method.strip().lower() for method in allowed.headers["allow"].split(",")} - {"head"}
        assert methods == set(operations)
    form = document["paths"]["/v1/captions"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {*DecoderSettings.__dataclass_fields__, "image", "explain"}
    assert form["properties"]["beam_size"]["maximum"] == 10
    assert form["properties"]["method"]["enum"] == ["greedy", "sample", "beam", "diverse_beam"]


def test_noise_of_every_format_is_captioned(server: Server) -> None:
    for form in ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"):
        assert server.post(picture(form=form)).status_code == 200
