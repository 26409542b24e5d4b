// Sign up, log in, list, and get by an id from the list; client: orval (fetch).
import { createPost, createUser, getUser, listPosts, listUsers, login } from "./client.js";

const [username = ""] = process.argv.slice(2);
const password = "Blue7horse";
const email = `${username}@example.com`;

const created = await createUser({ email, username, password });
if (created.status !== 201) {
  throw new Error(created.data.error);
}
const tokens = await login({ identifier: email, password });
if (tokens.status !== 200) {
  throw new Error(tokens.data.error);
}
const options = { headers: { authorization: `Bearer ${tokens.data.accessToken}` } };
const page = await listUsers({ username_prefix: username, sort_by: "-created_at" }, options);
if (page.status !== 200) {
  throw new Error(page.data.error);
}
const [first] = page.data.items;
if (first === undefined) {
  throw new Error("the list is empty");
}
const user = await getUser(first.id, options);
if (user.status !== 200) {
  throw new Error(user.data.error);
}
const post = await createPost({ title: "Hello", body: "World", categoryId: "0" }, options);
if (post.status !== 201) {
  throw new Error(post.data.error);
}
const posts = await listPosts({ author_id: user.data.id }, options);
if (posts.status !== 200) {
  throw new Error(posts.data.error);
}
if (user.data.id !== created.data.id || posts.data.items[0]?.authorId !== user.data.id) {
  throw new Error("the ids differ");
}
const missing = await getUser("999999999", options);
if (missing.status !== 404 || missing.data.errorCode !== "USER_NOT_FOUND") {
  throw new Error("expected USER_NOT_FOUND");
}
console.log(`id ${user.data.id}`);
