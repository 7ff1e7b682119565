"""A real MCP server whose tool says what a file tells it to, in its description or in its result."""

import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer

server = MCPServer("notes")
place, file = sys.argv[1:]
text = Path(file).read_text(encoding="utf-8")


@server.tool(description=text if place == "description" else "Returns notes.")
def notes() -> str:
    return text if place == "result" else "Nothing today."


@server.tool()
def environment() -> str:
    return "SECRET-OF-THE-SERVER"


if __name__ == "__main__":
    server.run("stdio")
