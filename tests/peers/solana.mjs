// solana/charge of the Payment scheme by @solana/mpp, as mppx's client and server take it.
import { createKeyPairSignerFromBytes, getBase58Encoder } from "@solana/kit";
import { USDC } from "@solana/mpp";
import { charge as clientCharge } from "@solana/mpp/client";
import { charge as serverCharge } from "@solana/mpp/server";

/** The wallet in PEER_KEY, base58 of 64 bytes. */
const signer = () => createKeyPairSignerFromBytes(getBase58Encoder().encode(process.env.PEER_KEY));

/** For mppx's client; the node at `rpcUrl` is asked for a blockhash where a challenge brings none. */
export const solanaClient = async (rpcUrl) => clientCharge({ signer: await signer(), rpcUrl });

/** For mppx's server: USDC to `recipient`, co-signed and sent by the wallet, which pays the fees. */
export const solanaServer = async (rpcUrl, recipient) =>
  serverCharge({
    recipient,
    currency: USDC["mainnet-beta"],
    decimals: 6,
    network: "localnet",
    rpcUrl,
    signer: await signer(),
  });
