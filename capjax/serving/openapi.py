"""The API's description of itself, as OpenAPI 3.1 has it."""

from typing import Any

from capjax import __version__
from capjax.serving.intake import IMAGE_FIELD
from capjax.serving.problems import MEDIA_TYPE
from capjax.serving.searches import EXPLAIN
from capjax.serving.service import Service

_TEXT, _OBJECT = {"type": "string"}, {"type": "object"}
_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
_PROBLEMS = {
    400: "not what multipart/form-data or HTTP looks like",
    403: "of another site's page, or by a name that is not this server's",
    408: "the body took too long",
    413: "too many bytes, images or pixels",
    415: "not an image",
    422: "a damaged image, or a search that cannot be",
    429: "too many requests of one client at once",
    503: "no room at the moment, not ready yet, or no answer in time",
}


def document(service: Service) -> dict[str, Any]:
    """Describe the API of a server, with its own defaults and bounds."""
    fields = {field["name"]: _schema(field) for field in service.rules.fields()}
    fields[EXPLAIN] = {"type": "boolean", "default": False, "description": "add words, their probabilities and heat"}
    image = {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": service.limits.max_images}
    form = {"type": "object", "required": [IMAGE_FIELD], "properties": {IMAGE_FIELD: image, **fields}}
    captions = {
        "summary": "Caption images",
        "parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()],
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": form}, "image/*": {"schema": {}}},
        },
        "responses": {
            "200": _answer("captions, in the order of the images", {"$ref": "#/components/schemas/Captions"}),
            **{str(status): _problem(status) for status in _PROBLEMS},
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "capjax",
            "version": __version__,
            "summary": "Captions for images",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/v1/captions": {"post": captions},
            "/v1/model": _get("What the model is, its search and the server's limits", _OBJECT),
            "/openapi.json": _get("This document", _OBJECT),
            "/healthz": _get("Whether the server can answer", _OBJECT, 503),
            "/readyz": _get("Whether everything is compiled", _OBJECT, 503),
            "/metrics": _get("Counts for Prometheus", _TEXT, media_type="text/plain"),
            "/": _get("A page for people", _TEXT, media_type="text/html"),
            "/page.css": _get("The page's looks", _TEXT, media_type="text/css"),
            "/page.js": _get("The page's script", _TEXT, media_type="text/javascript"),
        },
        "components": {"schemas": _schemas()},
    }


def _schema(field: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a field of the search."""
    schema = {"type": field["type"], "default": field["default"]}
    schema["description"] = f"{field['help']} (of {', '.join(field['methods'])})"
    if "choices" in field:
        schema["enum"] = field["choices"]
    if "most" in field:
        schema["maximum"] = field["most"]
    return schema


def _schemas() -> dict[str, Any]:
    log_prob = {"type": ["number", "null"], "description": "natural logarithm, summed over the words and the end"}
    sentence = {"caption": _TEXT, "log_prob": log_prob}
    likely = _object({"text": _TEXT, "probability": _PROBABILITY})
    heat = {
        "type": "array",
        "items": {"type": "array", "items": _PROBABILITY},
        "description": "rows of the square that the encoder saw, 1 where most spoke for the word",
    }
    word = _object({"text": _TEXT, "probability": _PROBABILITY, "likely": _list(likely), "heat": heat}, {"heat"})
    crop = {"enum": ["center", "none"], "description": "heat covers the largest centred square, or the whole image"}
    explanation = _object({"words": _list(word), "heat_method": _TEXT, "crop": crop})
    problem = _object({"type": _TEXT, "title": _TEXT, "status": {"type": "integer"}, "detail": _TEXT})
    captioned = {**sentence, "alternatives": _list(_object(sentence)), "explanation": explanation}
    entry = {
        "oneOf": [
            _object({"file": _TEXT, **captioned}, {"explanation"}),
            _object({"file": _TEXT, "error": {"$ref": "#/components/schemas/Problem"}}),
        ]
    }
    model = _object({"name": _TEXT, "sha256": _TEXT})
    return {"Captions": _object({"model": model, "search": _OBJECT, "captions": _list(entry)}), "Problem": problem}


def _object(properties: dict[str, Any], optional: set[str] | None = None) -> dict[str, Any]:
    required = [name for name in properties if name not in (optional or set())]
    return {"type": "object", "properties": properties, "required": required}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _answer(text: str, schema: dict[str, Any], media_type: str = "application/json") -> dict[str, Any]:
    return {"description": text, "content": {media_type: {"schema": schema}}}


def _problem(status: int) -> dict[str, Any]:
    return _answer(_PROBLEMS[status], {"$ref": "#/components/schemas/Problem"}, MEDIA_TYPE)


def _get(summary: str, schema: dict[str, Any], *problems: int, media_type: str = "application/json") -> dict[str, Any]:
    answers = {"200": _answer(summary, schema, media_type), **{str(status): _problem(status) for status in problems}}
    return {"get": {"summary": summary, "responses": answers}}
