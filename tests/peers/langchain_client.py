"""Drives langchain-huggingface and prints what it understood. Runs in that client's own environment.

    python langchain_client.py URL URL_OF_A_FULL_SERVER

Standard library and the client only: nothing of loadgen is installed there.
"""

import asyncio
import json
import sys

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

MESSAGES = [SystemMessage("Be brief."), HumanMessage("Thank you!")]


def _error(call: object) -> str:
    try:
        call()  # type: ignore[operator]
    except Exception as error:
        return type(error).__name__
    return "none"


async def _async(llm: HuggingFaceEndpoint, chat: ChatHuggingFace) -> dict:
    return {
        "words": [len(text.split()) for text in await llm.abatch(["one", "two", "three"])],
        "pieces": len([piece async for piece in llm.astream("hello")]),
        "chat": (await chat.ainvoke(MESSAGES)).usage_metadata["output_tokens"],
    }


def main(url: str, full_url: str) -> None:
    """Completion and chat: whole, streamed, batched and refused."""
    llm = HuggingFaceEndpoint(endpoint_url=url, max_new_tokens=4)
    full = HuggingFaceEndpoint(endpoint_url=full_url, max_new_tokens=4)
    wrong = HuggingFaceEndpoint(endpoint_url=url, max_new_tokens=4, top_k=0)
    chat = ChatHuggingFace(llm=llm, model_id="tgi", max_tokens=4)
    stopped = llm.invoke("hello", stop=list("esty"), max_new_tokens=60)
    whole = chat.invoke(MESSAGES)
    chunks = list(chat.stream(MESSAGES))
    found = {
        "words": len(llm.invoke("hello").split()),
        "pieces": [len(piece.split()) for piece in llm.stream("hello")],
        # The client takes the stop sequence off the end; it must have been the first.
        "passed_a_stop": [w for w in stopped.split()[:-1] if w[-1] in "esty"],
        "chat": {
            "tokens": whole.usage_metadata["output_tokens"],
            "reason": whole.response_metadata["finish_reason"],
            "words": len(whole.content.split()),
        },
        "chat_words": len("".join(chunk.content for chunk in chunks).split()),
        "chat_reason": [r for chunk in chunks if (r := chunk.response_metadata.get("finish_reason"))],
        "async": asyncio.run(_async(llm, chat)),
        "errors": [
            _error(lambda: wrong.invoke("hello")),
            _error(lambda: full.invoke("hello")),
            _error(lambda: list(full.stream("hello"))),
        ],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
