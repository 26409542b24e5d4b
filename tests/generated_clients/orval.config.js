export default {
  academy: {
    input: "openapi.json",
    output: {
      baseUrl: process.env.BASE_URL,
      client: "fetch",
      mode: "single",
      target: "orval/client.ts",
    },
  },
};
