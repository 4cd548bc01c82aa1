/** What the page knows of the served model. Called by app.js when the server can be reached. */

import { getJson } from "./api.js";
import { formatCount, formatNumber } from "./figures.js";

/** {id, contextLength, facts, hasChatTemplate, hasThinking, tellsRoles}. Raises ApiError. */
export async function readModel() {
  const { data } = await getJson("v1/models");
  const { id, max_model_len: contextLength, meta } = data[0];
  const contextText = `${formatNumber(contextLength)} tokens of context`;
  const facts = [`${formatCount(meta.n_params)} parameters`, `${meta.format} weights`, contextText].join(" · ");
  const { has_chat_template: hasChatTemplate, has_thinking: hasThinking } = meta;
  return {
    id,
    contextLength,
    facts,
    hasChatTemplate,
    hasThinking,
    tellsRoles: hasChatTemplate && (await tellsRoles()),
  };
}

/** Whether the chat template writes down who speaks. If not, the model only goes on with texts. */
async function tellsRoles() {
  const tokensOf = async (role) => {
    const messages = [
      { role, content: "a" },
      { role: "user", content: "b" },
    ];
    return JSON.stringify((await getJson("tokenize", { body: { messages } })).tokens);
  };
  try {
    return (await tokensOf("user")) !== (await tokensOf("assistant"));
  } catch (error) {
    if (error.status === 400) return true; // the template cares for the order of roles
    throw error;
  }
}
