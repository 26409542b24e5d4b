// Sign up, log in, list, and get by an id from the list; client: openapi-fetch.
import createClient from "openapi-fetch";

import type { components, paths } from "./schema.js";

const [baseUrl = "", username = ""] = process.argv.slice(2);
const password = "Blue7horse";
const client = createClient<paths>({ baseUrl });

function required<T>(result: { data?: T; error?: unknown }): T {
  if (result.data === undefined) {
    throw new Error(JSON.stringify(result.error));
  }
  return result.data;
}

const email = `${username}@example.com`;
const created = required(
  await client.POST("/api/v1/users", { body: { email, username, password } }),
);
const tokens = required(
  await client.POST("/api/v1/auth/login", { body: { identifier: email, password } }),
);
const headers = { authorization: `Bearer ${tokens.accessToken}` };
const page = required(
  await client.GET("/api/v1/users", {
    headers,
    params: { query: { username_prefix: username, sort_by: "-created_at" } },
  }),
);
const [first] = page.items;
if (first === undefined) {
  throw new Error("the list is empty");
}
const user: components["schemas"]["User"] = required(
  await client.GET("/api/v1/users/{id}", { headers, params: { path: { id: first.id } } }),
);
const category = "0";
required(
  await client.POST("/api/v1/posts", {
    headers,
    body: { title: "Hello", body: "World", categoryId: category },
  }),
);
const posts = required(
  await client.GET("/api/v1/posts", {
    headers,
    params: { query: { author_id: user.id } },
  }),
);
if (user.id !== created.id || posts.items[0]?.authorId !== user.id) {
  throw new Error("the ids differ");
}
const missing = await client.GET("/api/v1/users/{id}", {
  headers,
  params: { path: { id: "999999999" } },
});
if (missing.error?.errorCode !== "USER_NOT_FOUND") {
  throw new Error("expected USER_NOT_FOUND");
}
console.log(`id ${user.id}`);
