"""What deltalake must be told so that it reaches the same store with the same credentials as fsspec does.

It looks at most of the variables itself, but neither at profiles of Amazon, nor at a connection string of Azure, nor at
the address of an emulator of Google's store.
"""

import json
import os

from bundle.places import google_emulator
from scoring.table.place import Place


def storage_options(place: Place) -> dict[str, str]:
    """Options of deltalake for a table at `place`, as the environment is now."""
    options = {"s3": _amazon, "az": _azure, "gs": _google}.get(place.scheme)
    return options() if options else {}


def _amazon() -> dict[str, str]:
    import botocore.session

    session = botocore.session.get_session()
    options = {"aws_region": session.get_config_variable("region") or "us-east-1"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options |= {"aws_endpoint": endpoint, "allow_http": "true"}
    if found := session.get_credentials():
        keys = found.get_frozen_credentials()
        options |= {"aws_access_key_id": keys.access_key, "aws_secret_access_key": keys.secret_key}
        options |= {"aws_session_token": keys.token} if keys.token else {}
    return options


def _azure() -> dict[str, str]:
    """Of the connection string, where there is one: it has the word, as with fsspec."""
    parts = (part.partition("=") for part in os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";"))
    given = {name.strip().lower(): value.strip() for name, _, value in parts if value}
    if not given:
        return {}
    account = given.get("accountname", "")
    endpoint = given.get("blobendpoint", "")
    if not endpoint and (suffix := given.get("endpointsuffix")):
        endpoint = f"{given.get('defaultendpointsprotocol', 'https')}://{account}.blob.{suffix}"
    options = {
        "azure_storage_account_name": account,
        "azure_storage_account_key": given.get("accountkey", ""),
        "azure_storage_sas_token": given.get("sharedaccesssignature", "").removeprefix("?"),
        "azure_storage_endpoint": endpoint.rstrip("/"),
        "allow_http": "true" if endpoint.lower().startswith("http://") else "",
    }
    return {name: value for name, value in options.items() if value}


def _google() -> dict[str, str]:
    """Of an emulator, which asks for no credentials; else deltalake looks where fsspec does."""
    address = google_emulator()
    if not address:
        return {}
    nobody = {"client_email": "", "private_key": "", "private_key_id": ""}
    key = {"gcs_base_url": address, "disable_oauth": True, **nobody}
    return {"google_service_account_key": json.dumps(key), "allow_http": "true"}
