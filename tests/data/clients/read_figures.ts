// Reads an API with the client that openapi-typescript makes of the document, and prints what it read as JSON. The types are checked
// by tsc before the program runs, so a field that the document does not have is an error here.
import createClient from "openapi-fetch";
import type { components, operations, paths } from "./spendstream.js";

const [, , baseUrl, orgId] = process.argv;
if (baseUrl === undefined || orgId === undefined) throw new Error("expected an address and an org");
const client = createClient<paths>({ baseUrl, headers: { "X-API-Key": process.env["SPENDSTREAM_KEY"] ?? "" } });
const path: { orgId: string } = { orgId };

type Usage = components["schemas"]["Usage"];
type Names = keyof operations;
const used: Names[] = ["getUsage", "getReliability", "createExport", "listExports", "getExport"];

async function usage(): Promise<Usage> {
  const { data, error } = await client.GET("/analytics/v1/orgs/{orgId}/usage", {
    params: { path, query: { last: "30d", granularity: "day", groupBy: ["none"] } },
  });
  if (error !== undefined) throw new Error(error.detail);
  return data;
}

async function reliability() {
  const { data, error } = await client.GET("/analytics/v1/orgs/{orgId}/reliability", {
    params: { path, query: { last: "30d", groupBy: ["model"], percentile: ["p95"] } },
  });
  if (error !== undefined) throw new Error(error.detail);
  return data;
}

async function exported(timeRange: { start: string; end: string }) {
  const created = await client.POST("/analytics/v1/orgs/{orgId}/exports", {
    params: { path },
    body: { timeRange, granularity: "daily", format: "csv", groupBy: "model", initiatedBy: "typescript" },
  });
  if (created.error !== undefined) throw new Error(created.error.detail);
  const { data, error } = await client.GET("/analytics/v1/orgs/{orgId}/exports/{jobId}", {
    params: { path: { ...path, jobId: created.data.jobId } },
  });
  if (error !== undefined) throw new Error(error.detail);
  const listed = await client.GET("/analytics/v1/orgs/{orgId}/exports", { params: { path } });
  return { job: data, ids: listed.data?.items.map((item) => item.jobId) ?? [] };
}

async function refused(): Promise<components["schemas"]["ProblemDetails"]> {
  const { data, error } = await client.GET("/analytics/v1/orgs/{orgId}/usage", {
    params: { path, query: { last: "1h", start: "2026-11-01T00:00:00Z" } },
  });
  if (data !== undefined || error === undefined) throw new Error("it was answered");
  return error;
}

const figures = await usage();
console.log(
  JSON.stringify({
    used,
    usage: figures,
    reliability: await reliability(),
    ...(await exported({ start: figures.start, end: figures.end })),
    refused: await refused(),
  }),
);
