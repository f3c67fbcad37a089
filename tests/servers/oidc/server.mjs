// An identity provider on loopback for tests: oidc-provider with its own pages for logging in, where any password is right.
//
// Everything is in its memory. Who logs in as NAME is NAME, in the groups that ACCOUNTS says. A test may ask for new
// signing keys: POST /test/rotate, the old ones are gone then as well with ?forget=1.
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { Provider } from "oidc-provider";

const accounts = JSON.parse(process.env.ACCOUNTS || "{}");
const seconds = Number(process.env.ID_TOKEN_SECONDS || 300);
const cookies = randomBytes(16).toString("hex");
const rows = new Map();
let provider;

// What the provider remembers, which outlives a change of its keys.
class Memory {
  constructor(model) {
    this.model = model;
  }
  static scan(test) {
    return [...rows].find(([, row]) => test(row))?.[1];
  }
  key(id) {
    return `${this.model}:${id}`;
  }
  async upsert(id, payload) {
    rows.set(this.key(id), payload);
  }
  async find(id) {
    return rows.get(this.key(id));
  }
  async findByUid(uid) {
    return Memory.scan((row) => row.kind === this.model && row.uid === uid);
  }
  async findByUserCode(code) {
    return Memory.scan((row) => row.kind === this.model && row.userCode === code);
  }
  async consume(id) {
    rows.get(this.key(id)).consumed = Math.floor(Date.now() / 1000);
  }
  async destroy(id) {
    rows.delete(this.key(id));
  }
  async revokeByGrantId(grant) {
    for (const [key, row] of rows) if (row.grantId === grant) rows.delete(key);
  }
}

function newKey() {
  const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  return { ...privateKey.export({ format: "jwk" }), kid: randomBytes(8).toString("hex"), alg: "RS256", use: "sig" };
}

function build(issuer, keys) {
  const made = new Provider(issuer, {
    adapter: Memory,
    jwks: { keys },
    cookies: { keys: [cookies] },
    clients: [
      {
        client_id: "osmo-device",
        token_endpoint_auth_method: "none",
        application_type: "native",
        grant_types: ["urn:ietf:params:oauth:grant-type:device_code", "refresh_token"],
        response_types: [],
        redirect_uris: [],
      },
      {
        client_id: "osmo-browser",
        token_endpoint_auth_method: "none",
        application_type: "native",
        grant_types: ["authorization_code", "refresh_token"],
        response_types: ["code"],
        redirect_uris: ["http://127.0.0.1/callback"],
      },
    ],
    features: { deviceFlow: { enabled: true }, revocation: { enabled: true }, devInteractions: { enabled: true } },
    claims: {
      openid: ["sub"],
      profile: ["name", "preferred_username", "email", "groups"],
    },
    conformIdTokenClaims: false,
    findAccount: (_, id) => ({
      accountId: id,
      claims: () => ({
        sub: id,
        name: `${id[0].toUpperCase()}${id.slice(1)} Example`,
        preferred_username: id,
        email: `${id}@example.com`,
        groups: accounts[id] || [],
      }),
    }),
    // As most providers do for programs: a refresh token, also where nobody was asked for consent.
    issueRefreshToken: (_, client) => client.grantTypeAllowed("refresh_token"),
    expiresWithSession: () => false,
    ttl: {
      AccessToken: 300,
      AuthorizationCode: 60,
      DeviceCode: Number(process.env.DEVICE_CODE_SECONDS || 120),
      Grant: 3600,
      IdToken: seconds,
      Interaction: 300,
      RefreshToken: 3600,
      Session: 3600,
    },
  });
  made.use(async (ctx, next) => {
    await next();
    if (ctx.body && ctx.body.device_code) ctx.body.interval = 1; // the library names none, which means five seconds
  });
  return made;
}

const server = createServer((request, response) => {
  if (request.method === "POST" && request.url.startsWith("/test/rotate")) {
    keys = [newKey(), ...(request.url.endsWith("?forget=1") ? [] : keys)];
    provider = build(issuer, keys);
    response.end(JSON.stringify({ kid: keys[0].kid }));
    return;
  }
  provider.callback()(request, response);
});
let keys = [newKey()];
let issuer;
server.listen(0, "127.0.0.1", () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  provider = build(issuer, keys);
  console.log(`listens on ${issuer}`);
});
